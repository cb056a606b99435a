// What the playgrounds compute, written as the formulas are. Maps are flat arrays in reading order, channels last.
"use strict";

const numerics = {
  // z[h, w] = sum_ij K[i, j] x[h + i - k/2, w + j - k/2]; tokens outside count as zero.
  depthwiseConv(x, H, W, kernel, k) {
    const z = new Float64Array(H * W), r = (k - 1) / 2;
    for (let h = 0; h < H; h++) for (let w = 0; w < W; w++)
      for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
        const u = h + i - r, v = w + j - r;
        if (u >= 0 && u < H && v >= 0 && v < W) z[h * W + w] += kernel[i * k + j] * x[u * W + v];
      }
    return z;
  },

  // Each token that was looked at takes its share of the gradient back, and each weight of the kernel too.
  depthwiseConvBackward(dz, x, H, W, kernel, k) {
    const dx = new Float64Array(H * W), dkernel = new Float64Array(k * k), r = (k - 1) / 2;
    for (let h = 0; h < H; h++) for (let w = 0; w < W; w++)
      for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
        const u = h + i - r, v = w + j - r;
        if (u < 0 || u >= H || v < 0 || v >= W) continue;
        dx[u * W + v] += kernel[i * k + j] * dz[h * W + w];
        dkernel[i * k + j] += x[u * W + v] * dz[h * W + w];
      }
    return {dx, dkernel};
  },

  // a[t, c] = sum_l f_l g[t, l] ctx_l[t, c]; a context of a single token serves all of them.
  gatedSum(contexts, gates, factors, T, C) {
    const sum = new Float64Array(T * C), L = contexts.length;
    for (let l = 0; l < L; l++) {
      const whole = contexts[l].length === C;
      for (let t = 0; t < T; t++) for (let c = 0; c < C; c++)
        sum[t * C + c] += factors[l] * gates[t * L + l] * contexts[l][whole ? c : t * C + c];
    }
    return sum;
  },

  // a[t, c] = g[t, c] sum_l f_l ctx_l[t, c]: one gate a channel for all levels.
  channelGatedSum(contexts, gates, factors, T, C) {
    const sum = new Float64Array(T * C);
    contexts.forEach((context, l) => { for (let n = 0; n < T * C; n++) sum[n] += factors[l] * context[n]; });
    for (let n = 0; n < T * C; n++) sum[n] *= gates[n];
    return sum;
  },

  linear(x, weight, bias, T, I, O) {
    const y = new Float64Array(T * O);
    for (let t = 0; t < T; t++) for (let o = 0; o < O; o++) {
      let sum = bias[o];
      for (let i = 0; i < I; i++) sum += x[t * I + i] * weight[i * O + o];
      y[t * O + o] = sum;
    }
    return y;
  },

  multiply(x, y) { return Float64Array.from(x, (value, n) => value * y[n]); },

  // The L2 norm over the channels of each token.
  norms(x, T, C) {
    return Float64Array.from({length: T}, (_, t) => {
      let sum = 0;
      for (let c = 0; c < C; c++) sum += x[t * C + c] ** 2;
      return Math.sqrt(sum);
    });
  },
};
