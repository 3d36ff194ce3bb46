"""The C source that gives each kernel the old packed-function ABI, which DLR and other graph executors call.

A wrapper turns `f(TVMValue* args, int* codes, int n, …)` into TVM's new `__tvm_ffi_<kernel>(self, TVMFFIAny*, n,
TVMFFIAny*)`. It checks the number and the kind of the arguments, passes numbers that were arguments in Relax, and
hands the kernel's own failure on; the kernel itself checks dtype, lanes and shape of each tensor.
Source: c_runtime_api.h of TVM 0.6 to 0.8, c_api.h of tvm-ffi 0.1.14.
"""

from __future__ import annotations

from collections.abc import Mapping

from lisiere_compile.program import COPY, Wrapper

_PRELUDE = """\
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
  void* data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t* shape; int64_t* strides; uint64_t byte_offset;
} DLTensor;
typedef union { int64_t v_int64; double v_float64; void* v_handle; const char* v_str; } TVMValue;
typedef struct {
  int32_t type_index; uint32_t padding; union { int64_t v_int64; double v_float64; void* v_ptr; };
} TVMFFIAny;

enum { OLD_DLTENSOR = 7, OLD_NDARRAY = 13, NEW_INT = 1, NEW_FLOAT = 3, NEW_DLTENSOR = 7, DL_BOOL = 6 };

/* The host fills these where it finds them. The defaults make the library whole without a host. */
static void* own_alloc(int type, int id, uint64_t size, int code, int bits) {
  void* memory = NULL;
  (void)type; (void)id; (void)code; (void)bits;
  return posix_memalign(&memory, 128, size ? size : 1) ? NULL : memory;
}
static int own_free(int type, int id, void* memory) {
  (void)type; (void)id;
  free(memory);
  return 0;
}
typedef struct { void* sync; int32_t tasks; } Group;
static int own_launch(int (*task)(int, Group*, void*), void* closure, int tasks) {
  Group alone = {NULL, 1};
  (void)tasks;
  return task(0, &alone, closure);
}
void (*__TVMAPISetLastError)(const char*) = NULL;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = own_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = own_free;
int (*__TVMBackendParallelLaunch)(int (*)(int, Group*, void*), void*, int) = own_launch;

/* The kernels call this one, with a message in pieces. */
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  char text[1024];
  size_t at = 0;
  int32_t i;
  if (!__TVMAPISetLastError) return;
  for (i = -2; i < count; ++i) {
    const char* part = i == -2 ? kind : i == -1 ? ": " : parts[i];
    size_t length = part ? strlen(part) : 0;
    if (length > sizeof text - 1 - at) length = sizeof text - 1 - at;
    if (length) memcpy(text + at, part, length);
    at += length;
  }
  text[at] = 0;
  __TVMAPISetLastError(text);
}
static int refuse(const char* kernel, const char* why) {
  const char* parts[3];
  parts[0] = kernel; parts[1] = ": "; parts[2] = why;
  TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3);
  return -1;
}
static int tensors_only(const char* kernel, const TVMValue* args, const int* codes, int n, int wanted) {
  int i;
  if (n != wanted) return refuse(kernel, "called with another number of arguments than it has");
  for (i = 0; i < n; ++i)
    if ((codes[i] != OLD_DLTENSOR && codes[i] != OLD_NDARRAY) || !args[i].v_handle)
      return refuse(kernel, "called with an argument that is no tensor");
  return 0;
}
"""

_SIGNATURE = "int {name}(TVMValue* args, int* codes, int n, TVMValue* ret, int* ret_code, void* resource)"

_COPY = """\
static int copy(const char* name, TVMValue* args, int* codes, int n) {
  const DLTensor *from, *to;
  uint64_t size;
  int32_t i;
  if (tensors_only(name, args, codes, n, 2)) return -1;
  from = args[0].v_handle; to = args[1].v_handle;
  if (from->ndim != to->ndim || from->dtype.bits != to->dtype.bits || from->dtype.lanes != to->dtype.lanes)
    return refuse(name, "its tensors differ in dtype or rank");
  size = (uint64_t)from->dtype.bits * from->dtype.lanes / 8;
  for (i = 0; i < from->ndim; ++i) {
    if (from->shape[i] != to->shape[i]) return refuse(name, "its tensors differ in shape");
    size *= (uint64_t)from->shape[i];
  }
  memcpy((char*)to->data + to->byte_offset, (const char*)from->data + from->byte_offset, size);
  return 0;
}
"""


def wrapper_source(symbols: Mapping[Wrapper, str]) -> str:
    """Return the C source of all wrappers; `symbols` maps each to the name that the graph calls."""
    parts = [_PRELUDE]
    declared: set[str] = set()
    for wrapper, name in symbols.items():
        if wrapper.kernel == COPY:
            if COPY not in declared:
                declared.add(COPY)
                parts.append(_COPY)
            unused = "(void)ret; (void)ret_code; (void)resource;"
            parts.append(f'{_SIGNATURE.format(name=name)} {{ {unused} return copy("{name}", args, codes, n); }}\n')
            continue
        if wrapper.kernel not in declared:
            parts.append(f"extern int __tvm_ffi_{wrapper.kernel}(void*, TVMFFIAny*, int32_t, TVMFFIAny*);")
            declared.add(wrapper.kernel)
        parts.append(_wrap(wrapper, name))
    return "\n".join(parts)


def _wrap(wrapper: Wrapper, name: str) -> str:
    count = len(wrapper.slots)
    lines = [
        _SIGNATURE.format(name=name) + " {",
        f"  TVMFFIAny values[{count}], result;",
        f"  DLTensor bools[{max(wrapper.dtypes.count('bool'), 1)}];",
        "  (void)ret; (void)ret_code; (void)resource; (void)bools;",
        f'  if (tensors_only("{name}", args, codes, n, {len(wrapper.dtypes)})) return -1;',
        "  memset(values, 0, sizeof values);",
        "  memset(&result, 0, sizeof result);",
    ]
    tensor = flag = 0
    for slot, number in enumerate(wrapper.slots):
        if number is None:
            source = f"args[{tensor}].v_handle"
            if wrapper.dtypes[tensor] == "bool":
                # The graph says uint8, the kernel wants DLPack's bool: the same byte.
                lines.append(f"  bools[{flag}] = *(DLTensor*){source};")
                lines.append(f"  if (bools[{flag}].dtype.bits == 8) bools[{flag}].dtype.code = DL_BOOL;")
                source = f"&bools[{flag}]"
                flag += 1
            lines.append(f"  values[{slot}].type_index = NEW_DLTENSOR; values[{slot}].v_ptr = {source};")
            tensor += 1
        elif isinstance(number, float):
            lines.append(f"  values[{slot}].type_index = NEW_FLOAT; values[{slot}].v_float64 = {number.hex()};")
        else:
            # Written so that the smallest number is no overflow in C.
            lines.append(
                f"  values[{slot}].type_index = NEW_INT; values[{slot}].v_int64 = (int64_t){number % (1 << 64)}u;"
            )
    lines.append(f"  return __tvm_ffi_{wrapper.kernel}(NULL, values, {count}, &result) ? -1 : 0;")
    return "\n".join([*lines, "}\n"])
