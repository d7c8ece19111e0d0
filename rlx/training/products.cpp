// A batch of small matrix products, C[s] = A[s] B[s] in float32, in tiles that stay in registers.
// Each number of C is one chain of fused multiply-adds along k: the same in every batch and tile.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace {

using Vector = at::vec::Vectorized<float>;

constexpr int64_t WIDTH = Vector::size();
// AVX2 has 16 registers, where others have 32.
constexpr int64_t VECTORS = WIDTH == 8 ? 2 : 4;
constexpr int64_t ROWS = 6;

struct Matrix {
  const float* data;
  int64_t row;     // from one row to the next
  int64_t column;  // from one column to the next
};

// R rows of `columns` columns of C = A B, for which V vectors are enough: the last vector ends
// where the columns end, and overlaps the one before. Rows of b are at least a vector long.
template <int R, int V>
void tile(int64_t K, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
          int64_t columns) {
  int64_t place[V];
  for (int v = 0; v < V; v++) place[v] = v * WIDTH;
  place[V - 1] = std::max<int64_t>(columns - WIDTH, 0);
  Vector sums[R][V];
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) sums[r][v] = Vector(0.0f);
  }
  for (int64_t k = 0; k < K; k++) {
    Vector row[V];
    for (int v = 0; v < V; v++) row[v] = Vector::loadu(b + k * b_row + place[v]);
    for (int r = 0; r < R; r++) {
      const Vector x(a.data[r * a.row + k * a.column]);
      for (int v = 0; v < V; v++) sums[r][v] = at::vec::fmadd(x, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) {
      sums[r][v].store(c + r * c_row + place[v], std::min(columns, WIDTH));
    }
  }
}

using Tile = void (*)(int64_t, Matrix, const float*, int64_t, float*, int64_t, int64_t);

template <int V>
constexpr Tile TILES[ROWS] = {tile<1, V>, tile<2, V>, tile<3, V>,
                              tile<4, V>, tile<5, V>, tile<6, V>};

// Tiles of 1 to ROWS rows of so many columns.
const Tile* tiles(int64_t columns) {
  if (columns <= WIDTH) return TILES<1>;
  if (columns <= 2 * WIDTH) return TILES<2>;
  if (columns <= 3 * WIDTH) return TILES<std::min<int64_t>(3, VECTORS)>;
  return TILES<VECTORS>;
}

// `columns` columns of B, whose rows then lie one behind the other, `width` apart.
void pack(int64_t K, int64_t columns, Matrix b, float* packed, int64_t width) {
  if (b.row == 1) {
    for (int64_t k = 0; k < K; k += WIDTH) {
      for (int64_t n = 0; n < columns; n += WIDTH) {
        at::vec::transpose_mxn<float>(b.data + k + n * b.column, b.column, packed + k * width + n,
                                      width, std::min(WIDTH, columns - n), std::min(WIDTH, K - k));
      }
    }
    return;
  }
  for (int64_t k = 0; k < K; k++) {
    for (int64_t n = 0; n < columns; n++) {
      packed[k * width + n] = b.data[k * b.row + n * b.column];
    }
  }
}

void multiply(int64_t M, int64_t K, int64_t N, Matrix a, Matrix b, float* c,
              std::vector<float>& space) {
  for (int64_t begin = 0; begin < N; begin += VECTORS * WIDTH) {
    const int64_t n = std::min(begin, std::max<int64_t>(N - WIDTH, 0));
    const int64_t columns = std::min(VECTORS * WIDTH, N - n);
    const float* panel = b.data + n * b.column;
    int64_t panel_row = b.row;
    if (b.column != 1 || columns < WIDTH) {
      panel_row = std::max(columns, WIDTH);
      space.resize(K * panel_row);
      pack(K, columns, {panel, b.row, b.column}, space.data(), panel_row);
      panel = space.data();
    }
    const Tile* of_rows = tiles(columns);
    for (int64_t m = 0; m < M; m += ROWS) {
      const Matrix rows{a.data + m * a.row, a.row, a.column};
      of_rows[std::min(ROWS, M - m) - 1](K, rows, panel, panel_row, c + m * N + n, N, columns);
    }
  }
}

// [S, M, K] times [S, K, N] is [S, M, N].
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  const int64_t M = a.size(1);
  const int64_t K = a.size(2);
  const int64_t N = b.size(2);
  TORCH_CHECK(a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat, "float32 only");
  TORCH_CHECK(a.size(0) == b.size(0) && b.size(1) == K, "the sizes do not fit");
  at::Tensor c = at::empty({a.size(0), M, N}, a.options());
  const float* left = a.const_data_ptr<float>();
  const float* right = b.const_data_ptr<float>();
  float* result = c.mutable_data_ptr<float>();
  at::parallel_for(0, a.size(0), 1, [&](int64_t first, int64_t last) {
    std::vector<float> space;
    for (int64_t s = first; s < last; s++) {
      multiply(M, K, N, {left + s * a.stride(0), a.stride(1), a.stride(2)},
               {right + s * b.stride(0), b.stride(1), b.stride(2)}, result + s * M * N, space);
    }
  });
  return c;
}

TORCH_LIBRARY(rlx, library) { library.def("product(Tensor a, Tensor b) -> Tensor"); }
TORCH_LIBRARY_IMPL(rlx, CPU, library) { library.impl("product", product); }

}  // namespace
