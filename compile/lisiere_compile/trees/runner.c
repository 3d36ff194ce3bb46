/* Runs an ensemble's shared object under an emulator of its machine: `runner PLAN LIBRARY OUTPUT SECONDS`.
 *
 * PLAN holds the rows, float32, one after the other; OUTPUT gets what each gives. A row takes no time to speak of, so
 * SECONDS only bounds the whole.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

union Entry { int missing; float fvalue; int qvalue; };

static void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) {
    fprintf(stderr, "the library lacks %s\n", name);
    exit(1);
  }
  return found;
}

int main(int count, char** arguments) {
  FILE *plan, *output;
  void* library;
  size_t features, groups;
  union Entry* row;
  float* result;
  if (count != 5) return 2;
  alarm((unsigned)atoi(arguments[4]));
  plan = fopen(arguments[1], "rb");
  output = fopen(arguments[3], "wb");
  library = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL);
  if (!plan || !output || !library) {
    fprintf(stderr, "%s\n", library ? "a file cannot be opened" : dlerror());
    return 1;
  }
  features = ((size_t (*)(void))symbol(library, "get_num_feature"))();
  groups = ((size_t (*)(void))symbol(library, "get_num_output_group"))();
  row = malloc(features * sizeof *row);
  result = malloc(groups * sizeof *result);
  if (!row || !result) return 1;
  while (fread(row, sizeof *row, features, plan) == features) {
    size_t given = 1;
    if (groups > 1)
      given = ((size_t (*)(union Entry*, int, float*))symbol(library, "predict_multiclass"))(row, 0, result);
    else
      result[0] = ((float (*)(union Entry*, int))symbol(library, "predict"))(row, 0);
    if (fwrite(result, sizeof *result, given, output) != given) return 1;
  }
  return fclose(output) ? 1 : 0;
}
