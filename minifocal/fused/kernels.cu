// Kernels of single numbers, of rows and of patches. kernels.cuh goes before.

// Elementwise, on arrays of `count` numbers in order; V divides count

template <typename T, int V>
__global__ void gelu(const T* __restrict__ x, T* y, T* slope, Index count) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    const Vector<T, V> in = load<T, V>(x + at);
    Vector<T, V> out, slopes;
#pragma unroll
    for (int v = 0; v < V; ++v) gelu_of(in.lane[v], out.lane[v], slopes.lane[v]);
    store(y + at, out);
    store(slope + at, slopes);
}

template <typename T, int V>
__global__ void gelu_tanh(const T* __restrict__ x, T* y, T* slope, Index count) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    const Vector<T, V> in = load<T, V>(x + at);
    Vector<T, V> out, slopes;
#pragma unroll
    for (int v = 0; v < V; ++v) gelu_tanh_of(in.lane[v], out.lane[v], slopes.lane[v]);
    store(y + at, out);
    store(slope + at, slopes);
}

template <typename T, int V>
__global__ void sigmoid(const T* __restrict__ x, T* y, Index count) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    Vector<T, V> values = load<T, V>(x + at);
#pragma unroll
    for (int v = 0; v < V; ++v) values.lane[v] = sigmoid_of(values.lane[v]);
    store(y + at, values);
}

template <typename T, int V>
__global__ void sigmoid_backward(const T* __restrict__ dy, const T* __restrict__ y, T* dx, Index count) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    Vector<T, V> values = load<T, V>(dy + at);
    const Vector<T, V> ys = load<T, V>(y + at);
#pragma unroll
    for (int v = 0; v < V; ++v) values.lane[v] *= ys.lane[v] * (T(1) - ys.lane[v]);
    store(dx + at, values);
}

// y += bias, which has C numbers, in every one of the rows of y
template <typename T, int V>
__global__ void add_bias(T* y, const T* __restrict__ bias, int C, Index count) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    Vector<T, V> values = load<T, V>(y + at);
    const Vector<T, V> biases = load<T, V>(bias + divide(at, C).remainder);
#pragma unroll
    for (int v = 0; v < V; ++v) values.lane[v] += biases.lane[v];
    store(y + at, values);
}

template <typename T, int V>
__global__ void modulate_backward(
    const T* __restrict__ dy, const T* __restrict__ x, Index pitch, const T* __restrict__ modulator, T* dx,
    T* dmodulator, int C, Index count
) {
    const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= count) return;
    const Vector<T, V> upstream = load<T, V>(dy + at), modulators = load<T, V>(modulator + at);
    const Division token = divide(at, C);
    const Vector<T, V> xs = load<T, V>(x + token.quotient * pitch + token.remainder);
    Vector<T, V> to_x = all<T, V>(T(0)), to_modulator = to_x;
    add_product(to_x, upstream, modulators);
    add_product(to_modulator, upstream, xs);
    store(dx + at, to_x);
    store(dmodulator + at, to_modulator);
}

// The bits of the bfloat16 nearest to each number, ties to even; NaN stays NaN.
__global__ void to_bfloat16(const float* __restrict__ x, unsigned short* y, Index count) {
    const Index at = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const unsigned bits = __float_as_uint(x[at]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y[at] = (unsigned short)(is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Sums

// Over rows: sums[s, c] = scale * sum of weight[r] x[r, c], products[s, c] = scale * sum of weight[r] x[r, c] y[r, c],
// r in share s. A share has `share` rows; block (s, g) sums LANES columns of it, and its warps share out the rows.
template <typename T>
__global__ void column_sums(
    const T* __restrict__ x,
    const T* __restrict__ y,       // null where there are no products
    const T* __restrict__ weight,  // null where all are 1
    Index weight_pitch,
    Index rows,
    Index share,
    Index C,
    T scale,
    T* sums,
    T* products  // null where there is no y
) {
    __shared__ T parts[2][WALKERS][LANES];
    const Index c = Index(blockIdx.y) * LANES + threadIdx.x, first = Index(blockIdx.x) * share;
    const Index last = first + share < rows ? first + share : rows;
    T sum = 0, product = 0;
    if (c < C) {
#pragma unroll 4
        for (Index r = first + threadIdx.y; r < last; r += WALKERS) {
            const T value = weight ? weight[r * weight_pitch] * x[r * C + c] : x[r * C + c];
            sum += value;
            if (y) product += value * y[r * C + c];
        }
    }
    parts[0][threadIdx.y][threadIdx.x] = sum;
    parts[1][threadIdx.y][threadIdx.x] = product;
    __syncthreads();
    if (threadIdx.y > 0 || c >= C) return;
    for (int walker = 1; walker < WALKERS; ++walker) {
        sum += parts[0][walker][threadIdx.x];
        product += parts[1][walker][threadIdx.x];
    }
    sums[blockIdx.x * C + c] = scale * sum;
    if (products) products[blockIdx.x * C + c] = scale * product;
}

// Over channels: out[r] = sum over c of x[r, c] y[r / rows_of_y, c]; a warp a row
template <typename T, int V>
__global__ void row_products(
    const T* __restrict__ x, const T* __restrict__ y, int rows_of_y, Index rows, int C, T* out
) {
    const Index r = Index(blockIdx.x) * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    const T* other = y + divide(r, rows_of_y).quotient * C;
    Vector<T, V> sums = all<T, V>(T(0));
    for (int c = threadIdx.x * V; c < C; c += LANES * V)
        add_product(sums, load<T, V>(x + r * C + c), load<T, V>(other + c));
    T sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) sum += sums.lane[v];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[r] = sum;
}

// Layer norm: a warp a row. The first pass over a row brings it into the cache for the next ones

template <typename T, int V>
__global__ void layer_norm(
    const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, T eps, T* y, T* x_hat,
    T* rstd, Index rows, int C
) {
    const Index r = Index(blockIdx.x) * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    const T* row = x + r * C;
    T sum = 0, squares = 0;
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        const Vector<T, V> values = load<T, V>(row + c);
#pragma unroll
        for (int v = 0; v < V; ++v) sum += values.lane[v];
    }
    const T mean = warp_sum(sum) / T(C);
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        const Vector<T, V> values = load<T, V>(row + c);
#pragma unroll
        for (int v = 0; v < V; ++v) squares += (values.lane[v] - mean) * (values.lane[v] - mean);
    }
    const T scale = T(1) / sqrt(warp_sum(squares) / T(C) + eps);
    if (threadIdx.x == 0) rstd[r] = scale;
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        Vector<T, V> normalised = load<T, V>(row + c), out = load<T, V>(bias + c);
#pragma unroll
        for (int v = 0; v < V; ++v) normalised.lane[v] = (normalised.lane[v] - mean) * scale;
        add_product(out, normalised, load<T, V>(weight + c));
        store(x_hat + r * C + c, normalised);
        store(y + r * C + c, out);
    }
}

template <typename T, int V>
__global__ void layer_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x_hat, const T* __restrict__ rstd,
    const T* __restrict__ weight, T* dx, Index rows, int C
) {
    const Index r = Index(blockIdx.x) * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    T through_mean = 0, through_variance = 0;
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        const Vector<T, V> dys = load<T, V>(dy + r * C + c), weights = load<T, V>(weight + c);
        const Vector<T, V> normalised = load<T, V>(x_hat + r * C + c);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const T dx_hat = dys.lane[v] * weights.lane[v];
            through_mean += dx_hat;
            through_variance += dx_hat * normalised.lane[v];
        }
    }
    through_mean = warp_sum(through_mean) / T(C);
    through_variance = warp_sum(through_variance) / T(C);
    const T scale = rstd[r];
    for (int c = threadIdx.x * V; c < C; c += LANES * V) {
        Vector<T, V> dxs = load<T, V>(dy + r * C + c);
        const Vector<T, V> weights = load<T, V>(weight + c), normalised = load<T, V>(x_hat + r * C + c);
#pragma unroll
        for (int v = 0; v < V; ++v)
            dxs.lane[v] = dxs.lane[v] * weights.lane[v] - through_mean - normalised.lane[v] * through_variance;
#pragma unroll
        for (int v = 0; v < V; ++v) dxs.lane[v] *= scale;
        store(dx + r * C + c, dxs);
    }
}

// Patches: a thread a number of what is made, so that none is added to by two

template <typename T>
__global__ void patches(
    const T* __restrict__ x,
    Index image_pitch,
    Index row_pitch,
    Index pitch,
    Index channel_pitch,
    T* out,
    int H,
    int W,
    int C,
    int rows,
    int columns,
    int size,
    int stride,
    int above,
    int left,
    Index count
) {
    const Index at = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const Division in_row = divide(at, size), in_channel = divide(in_row.quotient, size);
    const Division in_patch = divide(in_channel.quotient, C), in_line = divide(in_patch.quotient, columns);
    const Division in_image = divide(in_line.quotient, rows);
    const int j = in_row.remainder, i = in_channel.remainder, c = in_patch.remainder;
    const int column = in_line.remainder, row = in_image.remainder;
    const Index b = in_image.quotient;
    const int h = row * stride + i - above, w = column * stride + j - left;
    const bool inside = h >= 0 && h < H && w >= 0 && w < W;
    out[at] = inside ? x[b * image_pitch + h * row_pitch + w * pitch + c * channel_pitch] : T(0);
}

template <typename T>
__global__ void patches_backward(
    const T* __restrict__ dpatches,
    T* dx,
    int H,
    int W,
    int C,
    int rows,
    int columns,
    int size,
    int stride,
    int above,
    int left,
    Index count
) {
    const Index at = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const Division in_token = divide(at, C), in_line = divide(in_token.quotient, W);
    const Division in_image = divide(in_line.quotient, H);
    const int c = in_token.remainder, w = in_line.remainder + left, h = in_image.remainder + above;
    const Index b = in_image.quotient;
    T sum = 0;
    // The patches that saw a pixel have it at i = h % stride, and every stride further on.
    for (int i = h % stride; i < size && i <= h; i += stride) {
        const int row = (h - i) / stride;
        if (row >= rows) continue;
        for (int j = w % stride; j < size && j <= w; j += stride) {
            const int column = (w - j) / stride;
            if (column >= columns) continue;
            const Index patch = (b * rows + row) * columns + column;
            sum += dpatches[((patch * C + c) * size + i) * size + j];
        }
    }
    dx[at] = sum;
}

// Softmax cross-entropy: a warp an image

template <typename T>
__global__ void cross_entropy(
    const T* __restrict__ logits, const Index* __restrict__ labels, T smoothing, T* probabilities, T* targets,
    T* losses, int B, int N
) {
    const int b = blockIdx.x * blockDim.y + threadIdx.y;
    if (b >= B) return;
    const T* row = logits + Index(b) * N;
    T largest = row[0], sum = 0, loss = 0;
    for (int n = threadIdx.x; n < N; n += LANES) largest = row[n] > largest ? row[n] : largest;
    largest = warp_max(largest);
    for (int n = threadIdx.x; n < N; n += LANES) sum += exp(row[n] - largest);
    const T log_sum = log(warp_sum(sum));
    for (int n = threadIdx.x; n < N; n += LANES) {
        const T log_probability = row[n] - largest - log_sum;
        const T target = (labels[b] == n ? T(1) - smoothing : T(0)) + smoothing / T(N);
        loss -= target * log_probability;
        probabilities[Index(b) * N + n] = exp(log_probability);
        targets[Index(b) * N + n] = target;
    }
    loss = warp_sum(loss);
    if (threadIdx.x == 0) losses[b] = loss;
}

template <typename T>
__global__ void cross_entropy_backward(
    const T* __restrict__ probabilities, const T* __restrict__ targets, const T* __restrict__ dloss, T number,
    T* dlogits, Index count
) {  // dloss: null where it is `number`
    const Index at = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < count) dlogits[at] = (probabilities[at] - targets[at]) * (dloss ? *dloss * number : number);
}
