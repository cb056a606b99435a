// Kernels of depthwise convolutions and focal levels. kernels.cuh goes before.

// Where a thread stands: the channels from c on of STRIP tokens from w on, in row h of image b. A block has a rectangle
// of rows (threadIdx.z) and strips (threadIdx.y), whose neighbourhoods overlap in the cache.
struct Place {
    Index b;
    int h, w, c;
    bool inside;
};

template <int V>
__device__ inline Place find_place(int H, int W, int C) {
    const int rows = blockDim.z, strips = blockDim.y;
    const int columns = (W + STRIP * strips - 1) / (STRIP * strips), down = (H + rows - 1) / rows;
    Place place;
    place.b = blockIdx.x / (columns * down);
    const int block = blockIdx.x % (columns * down);
    place.h = block / columns * rows + threadIdx.z;
    place.w = (block % columns * strips + threadIdx.y) * STRIP;
    place.c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    place.inside = place.h < H && place.w < W && place.c < C;
    return place;
}

// z of the STRIP tokens at a place; with TURNED the kernel is turned by half a turn, as on the way back.
template <typename T, int V, int K, bool TURNED>
__device__ inline void convolve_strip(
    const T* x, Index pitch, const T* weight, const Place& place, int H, int W, int C, Vector<T, V> (&z)[STRIP]
) {
#pragma unroll
    for (int s = 0; s < STRIP; ++s) z[s] = all<T, V>(T(0));
#pragma unroll 1
    for (int i = 0; i < K; ++i) {
        const int h = place.h + i - K / 2;
        if (h < 0 || h >= H) continue;
        const T* row = x + (place.b * H + h) * W * pitch + place.c;
        const T* taps = weight + Index(TURNED ? K - 1 - i : i) * K * C + place.c;
        Vector<T, V> tokens[STRIP + K - 1];
#pragma unroll
        for (int t = 0; t < STRIP + K - 1; ++t) {
            const int w = place.w + t - K / 2;
            tokens[t] = w >= 0 && w < W ? load<T, V>(row + w * pitch) : all<T, V>(T(0));
        }
#pragma unroll
        for (int j = 0; j < K; ++j) {
            const Vector<T, V> tap = load<T, V>(taps + (TURNED ? K - 1 - j : j) * C);
#pragma unroll
            for (int s = 0; s < STRIP; ++s) add_product(z[s], tap, tokens[s + j]);
        }
    }
}

template <typename T, int V, int K, bool TURNED>
__global__ void __launch_bounds__(256)
depthwise_conv(const T* __restrict__ x, Index pitch, const T* __restrict__ weight, T* z, int H, int W, int C) {
    const Place place = find_place<V>(H, W, C);
    if (!place.inside) return;
    Vector<T, V> strip[STRIP];
    convolve_strip<T, V, K, TURNED>(x, pitch, weight, place, H, W, C, strip);
    T* to = z + ((place.b * H + place.h) * W + place.w) * C + place.c;
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
        if (place.w + s < W) store(to + Index(s) * C, strip[s]);
}

// ctx = GELU(DWConv(x)), its slope, and aggregate = before + gate * ctx
template <typename T, int V, int K>
__global__ void __launch_bounds__(256) focal_level(
    const T* __restrict__ x,
    Index pitch,
    const T* __restrict__ weight,
    const T* __restrict__ gate,  // null where all are 1
    Index gate_pitch,
    const T* __restrict__ before,  // null where it is the number `start` everywhere
    T start,
    T* ctx,
    T* slope,
    T* aggregate,
    int H,
    int W,
    int C
) {
    const Place place = find_place<V>(H, W, C);
    if (!place.inside) return;
    Vector<T, V> strip[STRIP];
    convolve_strip<T, V, K, false>(x, pitch, weight, place, H, W, C, strip);
    const Index first = (place.b * H + place.h) * W + place.w;
#pragma unroll
    for (int s = 0; s < STRIP; ++s) {
        if (place.w + s >= W) continue;
        const Index token = first + s, at = token * C + place.c;
        Vector<T, V> context, slopes, sum = before ? load<T, V>(before + at) : all<T, V>(start);
#pragma unroll
        for (int v = 0; v < V; ++v) gelu_of(strip[s].lane[v], context.lane[v], slopes.lane[v]);
        add_product(sum, all<T, V>(gate ? gate[token * gate_pitch] : T(1)), context);
        store(ctx + at, context);
        store(slope + at, slopes);
        store(aggregate + at, sum);
    }
}

// dz = (dctx + gate * daggregate) * slope, and dgate = the sum over channels of daggregate * ctx; a warp a token
template <typename T, int V>
__global__ void gated_gradient(
    const T* __restrict__ dctx,  // null where it is the number `above` everywhere
    Index dctx_image,
    Index dctx_token,  // 0 where all tokens of an image get the same
    T above,
    const T* __restrict__ daggregate,
    const T* __restrict__ gate,  // null where all are 1, and there is no dgate
    Index gate_pitch,
    const T* __restrict__ ctx,
    const T* __restrict__ slope,
    T* dz,
    T* dgate,
    Index tokens,
    int tokens_of_image,
    int C
) {
    const Index t = Index(blockIdx.x) * blockDim.y + threadIdx.y;
    if (t >= tokens) return;
    const Division image = divide(t, tokens_of_image);
    const T* from_above = dctx ? dctx + image.quotient * dctx_image + image.remainder * dctx_token : nullptr;
    const Vector<T, V> share = all<T, V>(gate ? gate[t * gate_pitch] : T(1));
    Vector<T, V> products = all<T, V>(T(0));
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        const Vector<T, V> upstream = load<T, V>(daggregate + t * C + c), slopes = load<T, V>(slope + t * C + c);
        Vector<T, V> sum = from_above ? load<T, V>(from_above + c) : all<T, V>(above);
        add_product(sum, share, upstream);
#pragma unroll
        for (int v = 0; v < V; ++v) sum.lane[v] *= slopes.lane[v];
        store(dz + t * C + c, sum);
        if (gate) add_product(products, upstream, load<T, V>(ctx + t * C + c));
    }
    if (!gate) return;
    T product = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) product += products.lane[v];
    product = warp_sum(product);
    if (threadIdx.x == 0) dgate[t] = product;
}

// The first stage of dweight[i, j, c] = sum of dz[b, h, w, c] x[b, h + i - K/2, w + j - K/2, c]: over the rows of a
// share (blockIdx.x) alone. Warp i of a block has row i of the kernel, and slides a window of K tokens along x.
template <typename T, int V, int K>
__global__ void __launch_bounds__(LANES * K) depthwise_conv_weight(
    const T* __restrict__ dz, const T* __restrict__ x, Index pitch, Index rows, Index share, int H, int W, int C,
    T* parts
) {
    const int c = (blockIdx.y * LANES + threadIdx.x) * V, i = threadIdx.y;
    if (c >= C) return;
    const Index first = Index(blockIdx.x) * share, last = first + share < rows ? first + share : rows;
    Vector<T, V> sums[K];
#pragma unroll
    for (int j = 0; j < K; ++j) sums[j] = all<T, V>(T(0));
    for (Index r = first; r < last; ++r) {
        const Division image = divide(r, H);
        const int h = image.remainder + i - K / 2;
        if (h < 0 || h >= H) continue;
        const T *from = dz + r * W * C + c, *row = x + (image.quotient * H + h) * W * pitch + c;
        Vector<T, V> window[K];  // token w + j - K/2 stands in window[(w + j) % K]
#pragma unroll
        for (int j = 0; j < K - 1; ++j) {
            const int w = j - K / 2;
            window[j] = w >= 0 && w < W ? load<T, V>(row + w * pitch) : all<T, V>(T(0));
        }
        for (int start = 0; start < W; start += K) {
#pragma unroll
            for (int u = 0; u < K; ++u) {
                const int w = start + u, next = w + K / 2;
                if (w >= W) continue;
                window[(u + K - 1) % K] = next < W ? load<T, V>(row + next * pitch) : all<T, V>(T(0));
                const Vector<T, V> upstream = load<T, V>(from + Index(w) * C);
#pragma unroll
                for (int j = 0; j < K; ++j) add_product(sums[j], upstream, window[(u + j) % K]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < K; ++j) store(parts + ((Index(blockIdx.x) * K + i) * K + j) * C + c, sums[j]);
}

// aggregate = before + gate * ctx_global, which is one row for all tokens of an image
template <typename T, int V>
__global__ void global_level(
    const T* __restrict__ ctx_global,
    const T* __restrict__ gate,
    Index gate_pitch,
    const T* __restrict__ before,  // null where it is the number `start` everywhere
    T start,
    T* aggregate,
    int tokens_of_image,
    int C,
    Index count
) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    const Division token = divide(at, C);
    const T* context = ctx_global + divide(token.quotient, tokens_of_image).quotient * C + token.remainder;
    Vector<T, V> sum = before ? load<T, V>(before + at) : all<T, V>(start);
    add_product(sum, all<T, V>(gate[token.quotient * gate_pitch]), load<T, V>(context));
    store(aggregate + at, sum);
}
