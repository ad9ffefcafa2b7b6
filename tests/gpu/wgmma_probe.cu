// Whether matrix instructions of Hopper GPUs read shared memory as kernels/cuda/wgmma_tiles.cuh
// says. Needs nothing but nvcc and the GPU:
//   nvcc -std=c++20 -O2 -gencode=arch=compute_90a,code=sm_90a -I. tests/gpu/wgmma_probe.cu -o probe
// Status 0: all as described. 77: no such GPU.
//
// For either layout two products of small whole numbers (exact in bf16 and fp32), 16 and 128 long.
// Where one is wrong, products with single ones show which element stands where another should, and
// values of LBO and SBO other than the header's are tried.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/cuda/wgmma_tiles.cuh"

using namespace longview::kernels::cuda;

namespace {

using bf16 = __nv_bfloat16;
constexpr int kRows = 64;
constexpr int kSize = 128;

enum class Layout : int { kColumns, kRows };  // what k of B is: columns (K-major), rows (MN-major)

struct Arguments {
    const bf16* a = nullptr;  // [64, 128]
    const bf16* b = nullptr;  // [128, 128]: kColumns: [n, k], kRows: [k, n]
    float* d = nullptr;       // [64, 128]
    Layout layout = Layout::kColumns;
    int first_step = 0;  // 16 values of k a step
    int steps = 8;
    std::uint32_t lbo = 0;
    std::uint32_t sbo = 0;
};

__device__ void put(unsigned char* tile, const bf16* from, int rows) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * 16; i += 128)
        *reinterpret_cast<uint4*>(tile + tile_offset(i / 16, i % 16)) =
            *reinterpret_cast<const uint4*>(from + i * 8);
}
__device__ std::uint32_t pair(const bf16* p) {
    return *reinterpret_cast<const std::uint32_t*>(p);
}

__global__ void __launch_bounds__(128) multiply(Arguments x) {
    extern __shared__ unsigned char memory[];
    unsigned char* a = memory;
    a += (1024 - __cvta_generic_to_shared(a) % 1024) % 1024;
    unsigned char* b = a + kTileBytes;
    put(a, x.a, kRows);
    put(b, x.b, kSize);
    fence_for_matrices();
    __syncthreads();
    const auto a_at = static_cast<std::uint32_t>(__cvta_generic_to_shared(a));
    const auto b_at = static_cast<std::uint32_t>(__cvta_generic_to_shared(b));
    const std::uint64_t a_matrix = columns_descriptor(a_at);
    const std::uint64_t b_matrix = matrix_descriptor(b_at, x.lbo, x.sbo);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    const int t = static_cast<int>(threadIdx.x) % 4;
    float d[64];
    for (float& v : d) v = 0.0F;
#pragma unroll 1
    for (int step = x.first_step; step < x.first_step + x.steps; ++step) {
        if (x.layout == Layout::kColumns) {
            hold(d);
            wgmma_fence();
            wgmma_shared<true>(d, a_matrix + columns_step(step), b_matrix + columns_step(step));
        } else {
            const bf16* from = x.a + (16 * warp + g) * kSize + 16 * step + 2 * t;
            std::uint32_t p[4] = {pair(from), pair(from + 8 * kSize), pair(from + 8),
                                  pair(from + 8 * kSize + 8)};
            for (std::uint32_t& v : p) asm volatile("" : "+r"(v)::"memory");
            hold(d);
            wgmma_fence();
            wgmma_registers(d, p, b_matrix + rows_step(step));
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(d);
    }
    for (int i = 0; i < 64; ++i)
        x.d[(16 * warp + 8 * (i % 4 / 2) + g) * kSize + i / 4 * 8 + 2 * t + i % 2] = d[i];
}

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::printf("%s: %s\n", what, cudaGetErrorString(status));
    std::exit(2);
}

using Values = std::vector<float>;  // row-major, 128 columns
Values filled(int rows, const std::function<float(int, int)>& value) {
    Values v(static_cast<std::size_t>(rows) * kSize);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < kSize; ++c) v[static_cast<std::size_t>(r * kSize + c)] = value(r, c);
    return v;
}
float small(int r, int c, int salt) {
    std::uint32_t h = static_cast<std::uint32_t>(r * 131 + c) * 2654435761U + salt * 40503U;
    h ^= h >> 15;
    return static_cast<float>(static_cast<int>(h * 2246822519U >> 29)) - 3.0F;
}

class Probe {
  public:
    Probe() {
        check(cudaMalloc(&a_, kRows * kSize * 2), "cudaMalloc");
        check(cudaMalloc(&b_, kSize * kSize * 2), "cudaMalloc");
        check(cudaMalloc(&d_, kRows * kSize * 4), "cudaMalloc");
        check(cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
              "cudaFuncSetAttribute");
    }
    Values run(Layout layout, const Values& a, const Values& b, int first, int steps,
               std::uint32_t lbo, std::uint32_t sbo) {
        upload(a_, a);
        upload(b_, b);
        Arguments x;
        x.a = a_;
        x.b = b_;
        x.d = d_;
        x.layout = layout;
        x.first_step = first;
        x.steps = steps;
        x.lbo = lbo;
        x.sbo = sbo;
        multiply<<<1, 128, kShared>>>(x);
        check(cudaGetLastError(), "launch");
        check(cudaDeviceSynchronize(), "multiply");
        Values d(static_cast<std::size_t>(kRows) * kSize);
        check(cudaMemcpy(d.data(), d_, d.size() * 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
        return d;
    }

  private:
    static constexpr int kShared = 2 * kTileBytes + 1024;
    static void upload(bf16* to, const Values& v) {
        std::vector<bf16> values;
        for (const float f : v) values.push_back(__float2bfloat16(f));
        check(cudaMemcpy(to, values.data(), values.size() * 2, cudaMemcpyHostToDevice),
              "cudaMemcpy");
    }
    bf16* a_ = nullptr;
    bf16* b_ = nullptr;
    float* d_ = nullptr;
};

Values expected(Layout layout, const Values& a, const Values& b, int first, int steps) {
    return filled(kRows, [&](int m, int n) {
        float sum = 0.0F;
        for (int k = 16 * first; k < 16 * (first + steps); ++k)
            sum += a[static_cast<std::size_t>(m * kSize + k)] *
                   b[static_cast<std::size_t>(layout == Layout::kColumns ? n * kSize + k
                                                                         : k * kSize + n)];
        return sum;
    });
}

int mismatches(const Values& got, const Values& want, int shown) {
    int wrong = 0;
    for (int m = 0; m < kRows; ++m)
        for (int n = 0; n < kSize; ++n) {
            const auto i = static_cast<std::size_t>(m * kSize + n);
            if (got[i] == want[i]) continue;
            if (++wrong <= shown)
                std::printf("    row %d column %d: %g, should be %g\n", m, n, got[i], want[i]);
        }
    return wrong;
}

struct Kind {
    Layout layout;
    const char* name;
    std::uint32_t lbo;
    std::uint32_t sbo;
};

/// Which element of B stands at (k, n): A has a single one a row, at k; B holds its own row or
/// column numbers.
void map(Probe& probe, const Kind& kind) {
    int shown = 0;
    for (int half = 0; half < 2; ++half) {
        const Values a = filled(kRows, [&](int r, int c) { return c == half * kRows + r; });
        const auto read = [&](bool rows) {
            return probe.run(kind.layout, a,
                             filled(kSize, [&](int r, int c) { return float(rows ? r : c); }), 0, 8,
                             kind.lbo, kind.sbo);
        };
        const Values row = read(true);
        const Values column = read(false);
        for (int m = 0; m < kRows; ++m)
            for (int n = 0; n < kSize; ++n) {
                const int k = half * kRows + m;
                const int want_row = kind.layout == Layout::kColumns ? n : k;
                const int want_column = kind.layout == Layout::kColumns ? k : n;
                const auto i = static_cast<std::size_t>(m * kSize + n);
                if ((row[i] == want_row && column[i] == want_column) || shown == 40) continue;
                ++shown;
                std::printf("    k %3d n %3d: reads (%g, %g) of the tile instead of (%d, %d)\n", k,
                            n, row[i], column[i], want_row, want_column);
            }
    }
    if (shown == 0) std::printf("    every element of B is where it should be: look at A\n");
}

bool test(Probe& probe, const Kind& kind) {
    const Values a = filled(kRows, [](int r, int c) { return small(r, c, 1); });
    const Values b = filled(kSize, [](int r, int c) { return small(r, c, 2); });
    bool right = true;
    const auto part = [&](int first, int steps) {
        const Values want = expected(kind.layout, a, b, first, steps);
        const int wrong = mismatches(probe.run(kind.layout, a, b, first, steps, kind.lbo, kind.sbo),
                                     want, right ? 8 : 0);
        std::printf("%-4s %s, k from %d, %d long: %d of %d wrong\n", wrong == 0 ? "ok" : "BAD",
                    kind.name, 16 * first, 16 * steps, wrong, kRows * kSize);
        right = right && wrong == 0;
    };
    for (int step = 0; step < 8; ++step) part(step, 1);
    part(0, 8);
    if (right) return true;
    map(probe, kind);
    for (const std::uint32_t lbo : {16, 128, 1024, 2048, kPanelBytes})
        for (const std::uint32_t sbo : {16, 128, 1024, 2048, kPanelBytes})
            if (mismatches(probe.run(kind.layout, a, b, 0, 8, lbo, sbo),
                           expected(kind.layout, a, b, 0, 8), 0) == 0)
                std::printf("     right with LBO %u, SBO %u\n", lbo, sbo);
    return false;
}

}  // namespace

int main() {
    cudaDeviceProp device{};
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major != 9) {
        std::printf("skipped: needs a GPU of compute capability 9.0\n");
        return 77;
    }
    Probe probe;
    const bool columns = test(
        probe, {Layout::kColumns, "K-major, A and B from shared memory (scores)", 16, kAtomBytes});
    const bool rows = test(
        probe, {Layout::kRows, "MN-major, A from registers (values)", kPanelBytes, kAtomBytes});
    std::printf("%s\n", columns && rows ? "all as described" : "NOT as described");
    return columns && rows ? 0 : 1;
}
