// The operations of `functional/` as CUDA kernels, compiled when they are first called, for types and sizes at hand.
//
// Read the twin in `functional/` first; names are the same. What is special here:
//   - A map (B, H, W, C) is channels-last, so the threads of a warp stand beside each other along the channels, and
//     read one stretch of memory. Each takes a vector of V channels: 4 where addresses and sizes allow it, else 1.
//   - A `pitch` is the distance between the rows of channels of two tokens: a part of a wider map need not be copied.
//   - Sums over many rows are made in two stages, by blocks and then over blocks, always in the same order: the same
//     call gives the same bits. Nothing is added atomically.
//   - Inputs are `__restrict__`: nothing that is written overlaps them, so a load need not wait for the store before.
//   - Pointers that may be null say so.
// The source is plain C++ but for a few names of CUDA's, so that it can also be compiled for a CPU and tested there.

typedef long long Index;

[[maybe_unused]] const unsigned ALL_LANES = 0xffffffffu;
[[maybe_unused]] const int LANES = 32;    // threads of a warp
[[maybe_unused]] const int WALKERS = 8;   // warps of a block that share out rows among them
[[maybe_unused]] const int STRIP = 8;     // tokens beside each other that one thread convolves
[[maybe_unused]] const int CHUNK = 4096;  // numbers that one block updates

// Channels

template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
    T lane[V];
};

template <typename T, int V>
__device__ inline Vector<T, V> load(const T* from) {
    return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <typename T, int V>
__device__ inline void store(T* to, const Vector<T, V>& vector) {
    *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

template <typename T, int V>
__device__ inline Vector<T, V> all(T value) {
    Vector<T, V> vector;
#pragma unroll
    for (int v = 0; v < V; ++v) vector.lane[v] = value;
    return vector;
}

// sum += x * y
template <typename T, int V>
__device__ inline void add_product(Vector<T, V>& sum, const Vector<T, V>& x, const Vector<T, V>& y) {
#pragma unroll
    for (int v = 0; v < V; ++v) sum.lane[v] += x.lane[v] * y.lane[v];
}

// at = quotient * size + remainder. Division of 64 bits takes a hundred instructions, of 32 a dozen.
struct Division {
    Index quotient;
    int remainder;
};

__device__ inline Division divide(Index at, int size) {
    const bool is_short = at < Index(0x7fffffff);
    const Index quotient = is_short ? Index(unsigned(at) / unsigned(size)) : at / size;
    return {quotient, int(at - quotient * size)};
}

// The sum over the lanes of a warp, in every lane.
template <typename T>
__device__ inline T warp_sum(T value) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

template <typename T>
__device__ inline T warp_max(T value) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// Activations: y, and the slope dy/dx

template <typename T>
__device__ inline void gelu_of(T x, T& y, T& slope) {
    const T cdf = T(0.5) * (T(1) + erf(x * T(0.70710678118654752440)));
    const T density = T(0.39894228040143267794) * exp(T(-0.5) * x * x);
    y = x * cdf;
    slope = cdf + x * density;
}

template <typename T>
__device__ inline void gelu_tanh_of(T x, T& y, T& slope) {
    const T root = T(0.79788456080286535588), cubic = T(0.044715);
    const T t = tanh(root * (x + cubic * x * x * x));
    y = T(0.5) * x * (T(1) + t);
    slope = T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * root * (T(1) + T(3) * cubic * x * x);
}

template <typename T>
__device__ inline T sigmoid_of(T x) {
    return T(0.5) * (T(1) + tanh(T(0.5) * x));
}
