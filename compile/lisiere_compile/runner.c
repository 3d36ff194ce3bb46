/* Runs an artifact's shared object under an emulator of its machine: `runner PLAN LIBRARY OUTPUT SECONDS`.
 *
 * PLAN is what emulate.py writes: numbers are int64, strings and bytes have their length before them and are padded to
 * eight bytes. OUTPUT gets the output tensors of each case, one after the other. No further case begins after
 * SECONDS; after four times as many, the process ends itself by SIGALRM.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
  void* data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t* shape; int64_t* strides; uint64_t byte_offset;
} DLTensor;
typedef union { int64_t v_int64; double v_float64; void* v_handle; } TVMValue;
typedef int (*Kernel)(TVMValue*, int*, int, TVMValue*, int*, void*);
typedef struct { void* sync; int32_t tasks; } Group;
typedef struct { Kernel run; const char* name; int count; TVMValue* values; int* codes; } Call;

enum { CPU = 1, TENSOR_HANDLE = 7, ALIGNMENT = 128 };

static const char* at;
static int64_t threads;

static int fail(const char* what, const char* which) {
  fprintf(stderr, "%s%s\n", what, which ? which : "");
  exit(1);
}
static int64_t number(void) {
  int64_t value;
  memcpy(&value, at, sizeof value);
  at += sizeof value;
  return value;
}
static const char* bytes(int64_t* size) {
  const char* start;
  *size = number();
  start = at;
  at += (*size + 7) / 8 * 8;
  return start;
}
static void* aligned(int64_t size) {
  void* memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, size ? size : 1)) fail("out of memory", NULL);
  memset(memory, 0, size ? size : 1);
  return memory;
}

/* What generated code expects of its host. */
static void set_error(const char* message) { fprintf(stderr, "%s\n", message); }
static void* allocate(int type, int id, uint64_t size, int code, int bits) {
  (void)type; (void)id; (void)code; (void)bits;
  return aligned(size);
}
static int release(int type, int id, void* memory) {
  (void)type; (void)id;
  free(memory);
  return 0;
}
/* The tasks of a parallel region one after the other, as many as the artifact's threads. */
static int launch(int (*body)(int, Group*, void*), void* closure, int tasks) {
  Group group;
  int task;
  group.sync = NULL;
  group.tasks = tasks > 0 ? tasks : (int)threads;
  for (task = 0; task < group.tasks; ++task)
    if (body(task, &group, closure)) return -1;
  return 0;
}
static int barrier(int task, Group* group) {
  (void)task; (void)group;
  return 0;
}
static void hook(void* library, const char* name, void* function) {
  void** slot = dlsym(library, name);
  if (slot) *slot = function;
}

static int64_t size_of(const DLTensor* tensor) {
  int64_t size = tensor->dtype.bits / 8;
  int axis;
  for (axis = 0; axis < tensor->ndim; ++axis) size *= tensor->shape[axis];
  return size;
}
static void read_plan(const char* file) {
  FILE* stream = fopen(file, "rb");
  long size;
  char* plan;
  if (!stream || fseek(stream, 0, SEEK_END) || (size = ftell(stream)) < 0) fail("cannot read ", file);
  rewind(stream);
  plan = malloc(size + 1);
  if (!plan || fread(plan, 1, size, stream) != (size_t)size) fail("cannot read ", file);
  fclose(stream);
  at = plan;
}

int main(int argc, char** argv) {
  int64_t i, j, count, size, cases, inputs, outputs, calls;
  void *library, **storage;
  DLTensor *tensors, **fed, **given;
  Call* call;
  FILE* output;
  time_t start = time(NULL);
  if (argc != 5) fail("runner PLAN LIBRARY OUTPUT SECONDS", NULL);
  alarm(4 * atoi(argv[4]));
  read_plan(argv[1]);
  library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(dlerror(), NULL);
  hook(library, "__TVMAPISetLastError", set_error);
  hook(library, "__TVMBackendAllocWorkspace", allocate);
  hook(library, "__TVMBackendFreeWorkspace", release);
  hook(library, "__TVMBackendParallelLaunch", launch);
  hook(library, "__TVMBackendParallelBarrier", barrier);
  threads = number();

  count = number();
  storage = aligned(count * sizeof *storage);
  for (i = 0; i < count; ++i) storage[i] = aligned(number());

  count = number();
  tensors = aligned(count * sizeof *tensors);
  for (i = 0; i < count; ++i) {
    DLTensor* tensor = tensors + i;
    tensor->data = storage[number()];
    tensor->device.device_type = CPU;
    tensor->dtype.code = number();
    tensor->dtype.bits = number();
    tensor->dtype.lanes = 1;
    tensor->ndim = number();
    tensor->shape = (int64_t*)at;
    at += tensor->ndim * sizeof(int64_t);
  }

  count = number();
  for (i = 0; i < count; ++i) {
    DLTensor* tensor = tensors + number();
    const char* data = bytes(&size);
    if (size != size_of(tensor)) fail("a parameter is not of its tensor's size", NULL);
    memcpy(tensor->data, data, size);
  }

  calls = number();
  call = aligned(calls * sizeof *call);
  for (i = 0; i < calls; ++i) {
    call[i].name = bytes(&size);
    call[i].run = (Kernel)dlsym(library, call[i].name);
    if (!call[i].run) fail("the library lacks the kernel ", call[i].name);
    call[i].count = number();
    call[i].values = aligned(call[i].count * sizeof(TVMValue));
    call[i].codes = aligned(call[i].count * sizeof(int));
    for (j = 0; j < call[i].count; ++j) {
      call[i].values[j].v_handle = tensors + number();
      call[i].codes[j] = TENSOR_HANDLE;
    }
  }

  inputs = number();
  fed = aligned(inputs * sizeof *fed);
  for (i = 0; i < inputs; ++i) fed[i] = tensors + number();
  outputs = number();
  given = aligned(outputs * sizeof *given);
  for (i = 0; i < outputs; ++i) given[i] = tensors + number();

  output = fopen(argv[3], "wb");
  if (!output) fail("cannot write ", argv[3]);
  cases = number();
  for (i = 0; i < cases && (!i || time(NULL) - start < atoi(argv[4])); ++i) {
    for (j = 0; j < inputs; ++j) {
      const char* data = bytes(&size);
      if (size != size_of(fed[j])) fail("an input is not of its tensor's size", NULL);
      memcpy(fed[j]->data, data, size);
    }
    for (j = 0; j < calls; ++j) {
      TVMValue result;
      int kind = 0;
      if (call[j].run(call[j].values, call[j].codes, call[j].count, &result, &kind, NULL))
        fail("a kernel failed: ", call[j].name);
    }
    for (j = 0; j < outputs; ++j)
      if (fwrite(given[j]->data, 1, size_of(given[j]), output) != (size_t)size_of(given[j]))
        fail("cannot write ", argv[3]);
  }
  return fclose(output) ? fail("cannot write ", argv[3]) : 0;
}
