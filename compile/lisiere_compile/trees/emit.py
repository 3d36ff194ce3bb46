"""A forest as C: one walk over a table of nodes, under the names that DLR's `treelite` back end looks up.

The table comes into the library as bytes by the assembler's `.incbin`. Code with an `if` for each node, as tl2cgen
writes, takes a C compiler minutes: 217 s for a forest of 95,000 nodes, where this takes a moment.

libdlr 1.6 leaves out zeros as well as missing values when it hands a row over (a row of it is sparse), so what it
leaves out counts as zero here, and a value that is really missing comes as NaN or as `lisiere_missing`, the one number
that stands for it where NaN would be left out.
Source of the names: predictor.cc of treelite 0.9x inside neo-ai-dlr 1.6, which asks for `get_num_feature`,
`get_num_output_group`, and `predict` or (for more than one group) `predict_multiclass`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lisiere_compile.trees.forest import Forest

TABLES = {"nodes": "struct node", "roots": "uint32_t", "group": "uint32_t", "leaves": "leaf_t", "base": "double"}

_PRELUDE = """\
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* What the host passes for each feature: a float, or -1 where it has left the feature out. */
union Entry { int missing; float fvalue; int qvalue; };
struct node { float threshold; uint32_t feature, child; };

#ifdef __APPLE__
#define TABLE(name) __asm__(".section __DATA,__const\\n.balign 16\\n_lisiere_" #name ":\\n.incbin \\"" #name \\
  ".bin\\"\\n.byte 0\\n.text\\n")
#else
#define TABLE(name) __asm__(".pushsection .rodata\\n.balign 16\\nlisiere_" #name ":\\n.incbin \\"" #name \\
  ".bin\\"\\n.byte 0\\n.popsection\\n")
#endif
#define HIDDEN __attribute__((visibility("hidden")))

/* The value that stands for a missing one where the host would drop NaN. Hosts look it up. */
const float lisiere_missing = -FLT_MAX;
"""

_BODY = """\
/* The leaf of one tree. A comparison with NaN does not hold, so it tells what is missing. */
static uint32_t walk(uint32_t at, const float* row) {
  const struct node* node = &lisiere_nodes[at];
  while (node->child) {
    float value = row[node->feature & 0x7fffffffu];
    int left = (value <= node->threshold) | ((value != value) & (int)(node->feature >> 31));
    node = &lisiere_nodes[node->child + !left];
  }
  return node->feature;
}

static void add(const union Entry* data, double* out) {
  float row[FEATURES];
  leaf_t sums[SUMS];
  size_t i, k;
  for (i = 0; i < FEATURES; ++i) {
    float value = data[i].missing == -1 ? 0 : data[i].fvalue;
    row[i] = value == lisiere_missing ? NAN : value;
  }
  for (k = 0; k < SUMS; ++k) sums[k] = AVERAGE ? 0 : (leaf_t)lisiere_base[k];
  for (i = 0; i < TREES; ++i) {
    const leaf_t* leaf = &lisiere_leaves[(size_t)walk(lisiere_roots[i], row) * WIDTH];
    if (WIDTH == 1) sums[lisiere_group[i]] += leaf[0];
    else for (k = 0; k < WIDTH; ++k) sums[k] += leaf[k];
  }
  for (k = 0; k < SUMS; ++k) out[k] = AVERAGE ? lisiere_base[k] + sums[k] / TREES : sums[k];
}

size_t get_num_feature(void) { return FEATURES; }
size_t get_num_output_group(void) { return GROUPS; }
const char* get_pred_transform(void) { return TRANSFORM; }
float get_sigmoid_alpha(void) { return ALPHA; }
float get_global_bias(void) { return 0; }
"""

# What becomes of `out`, in C. Source: treelite's model specification, "postprocessor".
_SOFTMAX = """\
  for (k = 1, best = 0; k < SUMS; ++k) if (out[k] > out[best]) best = k;
  for (k = SUMS; k-- > 0;) if (k != best) total += out[k] = exp(out[k] - out[best]);
  out[best] = 1;
  for (k = 0; k < SUMS; ++k) out[k] /= total + 1;"""
_EACH = {
    "sigmoid": "1 / (1 + exp(-ALPHA * out[k]))",
    "multiclass_ova": "1 / (1 + exp(-ALPHA * out[k]))",
    "signed_square": "copysign(out[k] * out[k], out[k])",
    "hinge": "out[k] > 0",
    "exponential": "exp(out[k])",
    "exponential_standard_ratio": "exp2(-out[k] / RATIO)",
    "logarithm_one_plus_exp": "log1p(exp(out[k]))",
}
_WHOLE = {
    "identity": "  (void)out;",
    "identity_multiclass": "  (void)out;",
    "softmax": _SOFTMAX,
    "max_index": "  for (k = 1, best = 0; k < SUMS; ++k) if (out[k] > out[best]) best = k;\n  out[0] = (double)best;",
    "both_classes": "  out[1] = 1 / (1 + exp(-ALPHA * out[0]));\n  out[0] = 1 / (1 + exp(ALPHA * out[0]));",
}

_ONE = """
float predict(union Entry* data, int pred_margin) {
  double out[GROUPS];
  add(data, out);
  if (!pred_margin) finish(out);
  return (float)out[0];
}
"""
_SEVERAL = """
size_t predict_multiclass(union Entry* data, int pred_margin, float* result) {
  double out[GROUPS];
  size_t k, count = pred_margin ? SUMS : OUTPUTS;
  add(data, out);
  if (!pred_margin) finish(out);
  for (k = 0; k < count; ++k) result[k] = (float)out[k];
  return count;
}
"""


def write_source(forest: Forest, work: Path) -> str:
    """Write the tables into the folder where the compiler will run, and return the C source that includes them."""
    nodes = np.zeros(len(forest.child), [("threshold", "<f4"), ("feature", "<u4"), ("child", "<u4")])
    for name in ("threshold", "feature", "child"):
        nodes[name] = getattr(forest, name)
    tables = {
        "nodes": nodes,
        "roots": forest.roots,
        "group": forest.group,
        "leaves": forest.leaves,
        "base": forest.base,
    }
    for name, array in tables.items():
        (work / f"{name}.bin").write_bytes(np.ascontiguousarray(array).tobytes())
    constants = {
        "FEATURES": forest.features,
        "GROUPS": forest.groups,
        "OUTPUTS": forest.outputs,
        "SUMS": len(forest.base),
        "TREES": len(forest.roots),
        "WIDTH": forest.leaves.shape[1],
        "AVERAGE": int(forest.average),
        "ALPHA": _literal(forest.alpha),
        "RATIO": _literal(forest.ratio),
        "TRANSFORM": f'"{forest.finish}"',
    }
    if forest.finish in _EACH:
        finish = f"  for (k = 0; k < SUMS; ++k) out[k] = {_EACH[forest.finish]};"
    else:
        finish = _WHOLE[forest.finish]
    return "\n".join(
        [
            _PRELUDE,
            *(f"#define {name} {value}" for name, value in constants.items()),
            f"typedef {'float' if forest.leaves.dtype == np.float32 else 'double'} leaf_t;",
            *(f"TABLE({name});\nextern const {kind} lisiere_{name}[] HIDDEN;" for name, kind in TABLES.items()),
            _BODY,
            "static void finish(double* out) {",
            "  size_t k, best = 0;\n  double total = 0;\n  (void)k; (void)best; (void)total;",
            finish,
            "}",
            _ONE if forest.groups == 1 else _SEVERAL,
        ]
    )


def _literal(value: float) -> str:
    """A number as C reads it without loss."""
    return f"({value.hex()})" if math.isfinite(value) else "(1.0)"
