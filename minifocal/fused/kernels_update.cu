// Kernels of optimizers. kernels.cuh goes before.

// Updates: all parameters in one launch. A block has CHUNK numbers of one of them

struct Row {
    void *data, *grad, *first, *second;  // first, second: what the optimizer keeps
    Index size;
    double weight_decay;
};

struct Chunk {
    Index row, start;
};

template <typename T>
__global__ void sgd_update(
    const Row* rows, const Chunk* chunks, T lr, T momentum, bool nesterov, const bool* skip  // skip: may be null
) {
    if (skip && *skip) return;
    const Chunk chunk = chunks[blockIdx.x];
    const Row row = rows[chunk.row];
    T *data = static_cast<T*>(row.data), *velocity = static_cast<T*>(row.first);
    const T *grad = static_cast<const T*>(row.grad), decay = T(row.weight_decay);
    const Index last = chunk.start + CHUNK < row.size ? chunk.start + CHUNK : row.size;
    for (Index at = chunk.start + threadIdx.x; at < last; at += blockDim.x) {
        const T gradient = grad[at] + decay * data[at];
        const T v = momentum * velocity[at] + gradient;
        velocity[at] = v;
        data[at] -= lr * (nesterov ? gradient + momentum * v : v);
    }
}

template <typename T>
__global__ void adamw_update(
    const Row* rows,
    const Chunk* chunks,
    T lr,
    T beta1,
    T beta2,
    T eps,
    T mean_scale,    // 1 / (1 - beta1^steps)
    T square_scale,  // 1 / (1 - beta2^steps)
    const bool* skip  // may be null
) {
    if (skip && *skip) return;
    const Chunk chunk = chunks[blockIdx.x];
    const Row row = rows[chunk.row];
    T *data = static_cast<T*>(row.data), *mean = static_cast<T*>(row.first), *square = static_cast<T*>(row.second);
    const T *grad = static_cast<const T*>(row.grad), kept = T(1) - lr * T(row.weight_decay);
    const Index last = chunk.start + CHUNK < row.size ? chunk.start + CHUNK : row.size;
    for (Index at = chunk.start + threadIdx.x; at < last; at += blockDim.x) {
        const T gradient = grad[at];
        const T m = mean[at] + (T(1) - beta1) * (gradient - mean[at]);
        const T s = square[at] + (T(1) - beta2) * (gradient * gradient - square[at]);
        mean[at] = m;
        square[at] = s;
        data[at] = kept * data[at] - lr * (m * mean_scale) / (sqrt(s * square_scale) + eps);
    }
}

// The sum of squares of each chunk's gradient. A double holds the square of any float.
template <typename T>
__global__ void squares(const Row* rows, const Chunk* chunks, double* sums) {
    __shared__ double parts[LANES];
    const Chunk chunk = chunks[blockIdx.x];
    const T* grad = static_cast<const T*>(rows[chunk.row].grad);
    const Index size = rows[chunk.row].size, last = chunk.start + CHUNK < size ? chunk.start + CHUNK : size;
    double sum = 0;
    for (Index at = chunk.start + threadIdx.x; at < last; at += blockDim.x) sum += double(grad[at]) * double(grad[at]);
    sum = warp_sum(sum);
    if (threadIdx.x % LANES == 0) parts[threadIdx.x / LANES] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < int(blockDim.x) / LANES; ++warp) sum += parts[warp];
    sums[blockIdx.x] = sum;
}

template <typename T>
__global__ void scale_gradients(const Row* rows, const Chunk* chunks, const double* scale) {
    const Chunk chunk = chunks[blockIdx.x];
    T* grad = static_cast<T*>(rows[chunk.row].grad);
    const Index size = rows[chunk.row].size, last = chunk.start + CHUNK < size ? chunk.start + CHUNK : size;
    const T factor = T(*scale);
    for (Index at = chunk.start + threadIdx.x; at < last; at += blockDim.x) grad[at] *= factor;
}
