/* What a C program does with the library: a problem of every field's own, forward, backward, a mistake. Prints what went wrong. */
#include "inducer_attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 1, H = 2, N = 5, M = 7, D = 4, R = 2 };

static int failures = 0;

#define CHECK(condition, ...)             \
  do {                                    \
    if (!(condition)) {                   \
      failures++;                         \
      printf("line %d: ", __LINE__);      \
      printf(__VA_ARGS__);                \
      printf("\n");                       \
    }                                     \
  } while (0)

static float noise(void) {
  static uint32_t state = 7;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (float)(1 << 23) - 1.0f;
}

/* A dense f32 tensor with its own memory. */
typedef struct {
  DLTensor t;
  int64_t shape[4];
  float x[B * H * M * D];
} tensor;

static DLTensor *make(tensor *a, int ndim, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  int64_t shape[4] = {n0, n1, n2, n3};
  memcpy(a->shape, shape, sizeof shape);
  memset(&a->t, 0, sizeof a->t);
  a->t.data = a->x;
  a->t.device.device_type = 1;
  a->t.ndim = ndim;
  a->t.dtype.code = 2;
  a->t.dtype.bits = 32;
  a->t.dtype.lanes = 1;
  a->t.shape = a->shape;
  for (size_t i = 0; i < sizeof a->x / sizeof *a->x; i++) a->x[i] = noise();
  return &a->t;
}

static tensor q, k, v, o, lse, d_o, d_q, d_k, d_v;
static tensor key[4], value[4], d_key[4], d_value[4];

static ia_adapter adapter(tensor *t) {
  ia_adapter a = {make(&t[0], 3, H, D, R, 0), make(&t[1], 2, H, R, 0, 0), make(&t[2], 3, H, R, D, 0),
                  make(&t[3], 2, H, D, 0, 0)};
  return a;
}

/* x A + a through tanh, B and b, of row x of head h. */
static void apply(const tensor *t, int h, const float *x, double *y) {
  for (int c = 0; c < D; c++) y[c] = t[3].x[h * D + c];
  for (int r = 0; r < R; r++) {
    double z = t[1].x[h * R + r];
    for (int c = 0; c < D; c++) z += (double)x[c] * t[0].x[(h * D + c) * R + r];
    for (int c = 0; c < D; c++) y[c] += tanh(z) * t[2].x[(h * R + r) * D + c];
  }
}

/* The equations in double: O of causal attention with a residual key and value. Returns the sum of O * dO. */
static double expected(double *result) {
  double sum = 0;
  for (int h = 0; h < H; h++)
    for (int i = 0; i < N; i++) {
      const float *x = &q.x[(h * N + i) * D];
      double total = 0, attn[D] = {0}, p_k[D], delta[D], s0 = 0;
      for (int j = 0; j <= i + M - N; j++) {
        double s = 0;
        for (int c = 0; c < D; c++) s += (double)x[c] * k.x[(h * M + j) * D + c];
        double p = exp(s / sqrt(D));
        total += p;
        for (int c = 0; c < D; c++) attn[c] += p * v.x[(h * M + j) * D + c];
      }
      apply(key, h, x, p_k);
      apply(value, h, x, delta);
      for (int c = 0; c < D; c++) s0 += x[c] * (x[c] + p_k[c]);
      double lambda = 1 / (1 + exp(log(total) - s0 / sqrt(D)));
      for (int c = 0; c < D; c++) {
        double y = attn[c] / total + lambda * delta[c];
        if (result) result[(h * N + i) * D + c] = y;
        sum += y * d_o.x[(h * N + i) * D + c];
      }
    }
  return sum;
}

/* The gradient of every element of `t`, by central differences. */
static void check_gradient(const char *name, tensor *t, const tensor *gradient, int count) {
  for (int i = 0; i < count; i++) {
    const float kept = t->x[i], h = 1.0f / 1024;
    t->x[i] = kept + h;
    double up = expected(NULL), above = t->x[i];
    t->x[i] = kept - h;
    double down = expected(NULL), below = t->x[i];
    t->x[i] = kept;
    double want = (up - down) / (above - below);
    CHECK(fabs(gradient->x[i] - want) < 1e-4, "%s[%d]: %g, expected %g", name, i, gradient->x[i], want);
  }
}

int main(void) {
  CHECK(ia_abi_version() == IA_ABI_VERSION, "version %u", ia_abi_version());
  CHECK(strncmp(ia_description(), "inducer-attention ", 18) == 0, "description '%s'", ia_description());
  ia_attention a = {.struct_size = sizeof a};
  a.q = make(&q, 4, B, H, N, D);
  a.k = make(&k, 4, B, H, M, D);
  a.v = make(&v, 4, B, H, M, D);
  a.options = IA_CAUSAL;
  a.key = IA_KEY_RESIDUAL;
  a.value = IA_VALUE_RESIDUAL;
  a.key_adapter = adapter(key);
  a.value_adapter = adapter(value);

  ia_outputs out = {.struct_size = sizeof out};
  out.o = make(&o, 4, B, H, N, D);
  out.lse = make(&lse, 3, B, H, N, 0);
  ia_workspace *workspace = ia_workspace_new();
  CHECK(ia_forward(&a, &out, workspace) == IA_OK, "forward: %s", ia_last_error());
  double want[H * N * D];
  make(&d_o, 4, B, H, N, D);
  expected(want);
  for (int i = 0; i < H * N * D; i++) CHECK(fabs(o.x[i] - want[i]) < 1e-5, "o[%d]: %g, expected %g", i, o.x[i], want[i]);

  ia_gradients g = {.struct_size = sizeof g, .o = &o.t, .lse = &lse.t, .d_o = &d_o.t};
  g.d_q = make(&d_q, 4, B, H, N, D);
  g.d_k = make(&d_k, 4, B, H, M, D);
  g.d_v = make(&d_v, 4, B, H, M, D);
  g.d_key_adapter = adapter(d_key);
  g.d_value_adapter = adapter(d_value);
  CHECK(ia_backward(&a, &g, workspace) == IA_OK, "backward: %s", ia_last_error());
  check_gradient("d_q", &q, &d_q, H * N * D);
  check_gradient("d_k", &k, &d_k, H * M * D);
  check_gradient("d_v", &v, &d_v, H * M * D);
  const int sizes[4] = {H * D * R, H * R, H * R * D, H * D};
  for (int i = 0; i < 4; i++) {
    check_gradient("d_key", &key[i], &d_key[i], sizes[i]);
    check_gradient("d_value", &value[i], &d_value[i], sizes[i]);
  }

  /* A mistake names its argument, and writes nothing. */
  float before = o.x[0] = 42;
  k.shape[3] = D - 1;
  CHECK(ia_forward(&a, &out, NULL) == IA_INVALID, "a wrong shape was taken");
  CHECK(strstr(ia_last_error(), "k: shape") != NULL, "said '%s'", ia_last_error());
  CHECK(o.x[0] == before, "something was written");
  ia_workspace_free(workspace);
  ia_workspace_free(NULL);
  if (failures == 0) printf("all right\n");
  return failures != 0;
}
