/* Fused CPU kernels: GroupNorm + ReLU on NHWC tensors and weight standardization, forward and backward.
 *
 * Plain C11, no headers of torch: native.py compiles this file with the user's own compiler and calls it through ctypes.
 * Threads come from the OpenMP runtime that torch itself is linked against, handed over as function pointers
 * (bit_threads), because a second OpenMP runtime in the process would fight the first one for the cores.
 *
 * Numerics. Activations are bfloat16 or float32, everything else float32. Statistics take two passes over data that sit
 * in the L2 cache: first the mean, then the squares of the distances to it, with the usual correction for the rounding of
 * that mean; sums over groups are double. A mean is kept as the sum of two floats (high, low), because a group with a
 * large mean and a small spread loses its digits otherwise.
 *
 * Determinism. Each item of work (an image and some whole groups, or an output channel) has one owner that sums in a fixed
 * order, so results depend neither on the number of threads nor on chance.
 */

#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 512 /* most channels an item holds: its per-channel arrays then stay in the L1 cache */
#define CACHE (512 * 1024) /* bytes of activations an item may revisit: half of a usual L2 cache */

/* ---- threads ---- */

typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*query_t)(void);

static parallel_t parallel;
static query_t rank, size;

void bit_threads(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads)
{
    parallel = (parallel_t)gomp_parallel;
    rank = (query_t)omp_get_thread_num;
    size = (query_t)omp_get_num_threads;
}

typedef struct {
    void (*body)(const void *, ptrdiff_t);
    const void *arguments;
    ptrdiff_t items;
} task_t;

static void share(void *pointer)
{
    const task_t *task = pointer;
    ptrdiff_t me = rank(), all = size();
    for (ptrdiff_t i = task->items * me / all; i < task->items * (me + 1) / all; i++)
        task->body(task->arguments, i);
}

/* body(arguments, i) for each i in [0, items), on up to `threads` threads. */
static void run(void (*body)(const void *, ptrdiff_t), const void *arguments, ptrdiff_t items, int threads)
{
    task_t task = {body, arguments, items};
    if (threads > items)
        threads = (int)items;
    if (threads > 1)
        parallel(share, &task, (unsigned)threads, 0);
    else
        for (ptrdiff_t i = 0; i < items; i++)
            body(arguments, i);
}

/* ---- numbers ---- */

INLINE float load(const void *data, ptrdiff_t i, int bf16)
{
    float value;
    if (bf16) {
        uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
        memcpy(&value, &bits, 4);
    } else
        value = ((const float *)data)[i];
    return value;
}

/* Rounds to nearest even; a NaN stays one. */
INLINE void store(void *data, ptrdiff_t i, float value, int bf16)
{
    if (bf16) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        ((uint16_t *)data)[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    } else
        ((float *)data)[i] = value;
}

typedef struct {
    float high, low; /* the mean is high + low */
    float scale; /* 1 / sqrt(variance + eps) */
} stats_t;

/* The two floats that add up to `mean`. A low part after an infinite or NaN high part would turn infinities into NaNs. */
INLINE void split(double mean, float *high, float *low)
{
    *high = (float)mean;
    *low = isfinite(*high) ? (float)(mean - *high) : 0;
}

/* ---- GroupNorm + ReLU ---- */

typedef struct {
    const void *x, *grad;
    void *out;
    const float *weight, *bias;
    stats_t *stats; /* (images, groups) */
    float *partial; /* (2, images, channels): each image's share of the gradients of weight and bias */
    float *weight_grad, *bias_grad;
    ptrdiff_t images, pixels, channels, groups, width /* channels per item */;
    double eps;
    int bf16;
} norm_t;

/* An item's place: its first element of x, its channels [start, start + width) and its groups. */
typedef struct {
    ptrdiff_t image, start, width, first, each /* channels per group */, origin;
} place_t;

INLINE place_t place_of(const norm_t *a, ptrdiff_t item)
{
    ptrdiff_t blocks = (a->channels + a->width - 1) / a->width;
    place_t p;
    p.image = item / blocks;
    p.start = item % blocks * a->width;
    p.width = a->channels - p.start < a->width ? a->channels - p.start : a->width;
    p.each = a->channels / a->groups;
    p.first = p.image * a->groups + p.start / p.each;
    p.origin = p.image * a->pixels * a->channels + p.start;
    return p;
}

INLINE void norm_forward(const norm_t *a, ptrdiff_t item, const int bf16)
{
    const place_t p = place_of(a, item);
    const ptrdiff_t rows = a->pixels, step = a->channels, width = p.width;
    const double count = (double)rows * (double)p.each;
    float sum[LANES], square[LANES], high[LANES], scale[LANES], shift[LANES];

    memset(sum, 0, sizeof(float) * (size_t)width);
    ptrdiff_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        const ptrdiff_t at = p.origin + row * step;
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++)
            sum[c] += (load(a->x, at + c, bf16) + load(a->x, at + step + c, bf16))
                    + (load(a->x, at + 2 * step + c, bf16) + load(a->x, at + 3 * step + c, bf16));
    }
    for (; row < rows; row++) {
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++)
            sum[c] += load(a->x, p.origin + row * step + c, bf16);
    }
    for (ptrdiff_t c = 0; c < width; c += p.each) {
        double total = 0;
        for (ptrdiff_t i = c; i < c + p.each; i++)
            total += sum[i];
        for (ptrdiff_t i = c; i < c + p.each; i++)
            high[i] = (float)(total / count);
    }

    memset(sum, 0, sizeof(float) * (size_t)width);
    memset(square, 0, sizeof(float) * (size_t)width);
    for (row = 0; row + 2 <= rows; row += 2) {
        const ptrdiff_t at = p.origin + row * step;
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++) {
            float d = load(a->x, at + c, bf16) - high[c], e = load(a->x, at + step + c, bf16) - high[c];
            sum[c] += d + e;
            square[c] += d * d + e * e;
        }
    }
    for (; row < rows; row++) {
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++) {
            float d = load(a->x, p.origin + row * step + c, bf16) - high[c];
            sum[c] += d;
            square[c] += d * d;
        }
    }
    for (ptrdiff_t c = 0; c < width; c += p.each) {
        double total = 0, squares = 0;
        for (ptrdiff_t i = c; i < c + p.each; i++) {
            total += sum[i];
            squares += square[i];
        }
        const double offset = total / count, variance = squares / count - offset * offset;
        stats_t *s = &a->stats[p.first + c / p.each];
        s->scale = (float)(1 / sqrt((variance < 0 ? 0 : variance) + a->eps));
        split(high[c] + offset, &s->high, &s->low);
        for (ptrdiff_t i = c; i < c + p.each; i++) {
            high[i] = s->high;
            scale[i] = s->scale * a->weight[p.start + i];
            shift[i] = a->bias[p.start + i] - s->low * scale[i];
        }
    }

    for (row = 0; row < rows; row++) {
        const ptrdiff_t at = p.origin + row * step;
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++) {
            float y = (load(a->x, at + c, bf16) - high[c]) * scale[c] + shift[c];
            store(a->out, at + c, y < 0 ? 0 : y, bf16); /* so written, a NaN stays one */
        }
    }
}

/* With d = x - mean, s = scale and g = the gradient where the ReLU is open:
 *   bias' = sum g,  weight' = s sum g d,  x' = s (g w - mean(g w) - s d mean(g w s d)),
 * means over the group. The ReLU's mask is recomputed from x, so that nothing but x and the statistics is kept. */
INLINE void norm_backward(const norm_t *a, ptrdiff_t item, const int bf16)
{
    const place_t p = place_of(a, item);
    const ptrdiff_t rows = a->pixels, step = a->channels, width = p.width;
    const double count = (double)rows * (double)p.each;
    float sum[LANES], slope[LANES], high[LANES], scale[LANES], shift[LANES];

    for (ptrdiff_t c = 0; c < width; c++) {
        const stats_t *s = &a->stats[p.first + c / p.each];
        high[c] = s->high;
        scale[c] = s->scale * a->weight[p.start + c];
        shift[c] = a->bias[p.start + c] - s->low * scale[c];
    }
    memset(sum, 0, sizeof(float) * (size_t)width);
    memset(slope, 0, sizeof(float) * (size_t)width);
    for (ptrdiff_t row = 0; row < rows; row++) {
        const ptrdiff_t at = p.origin + row * step;
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++) {
            float d = load(a->x, at + c, bf16) - high[c], g = load(a->grad, at + c, bf16);
            g = d * scale[c] + shift[c] <= 0 ? 0 : g;
            sum[c] += g;
            slope[c] += g * d;
        }
    }

    float *const bias_share = a->partial + p.image * step + p.start;
    float *const weight_share = bias_share + a->images * step;
    float along[LANES], constant[LANES];
    for (ptrdiff_t c = 0; c < width; c += p.each) {
        const stats_t *s = &a->stats[p.first + c / p.each];
        double mean = 0, tilt = 0;
        for (ptrdiff_t i = c; i < c + p.each; i++) {
            const double bias = sum[i], weight = s->scale * (slope[i] - s->low * bias);
            bias_share[i] = (float)bias;
            weight_share[i] = (float)weight;
            mean += bias * a->weight[p.start + i];
            tilt += weight * a->weight[p.start + i];
        }
        const double factor = s->scale * (double)s->scale * tilt / count;
        for (ptrdiff_t i = c; i < c + p.each; i++) {
            along[i] = (float)-factor;
            constant[i] = (float)(factor * s->low - s->scale * mean / count);
        }
    }

    for (ptrdiff_t row = 0; row < rows; row++) {
        const ptrdiff_t at = p.origin + row * step;
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; c++) {
            float d = load(a->x, at + c, bf16) - high[c], g = load(a->grad, at + c, bf16);
            g = d * scale[c] + shift[c] <= 0 ? 0 : g;
            store(a->out, at + c, g * scale[c] + (d * along[c] + constant[c]), bf16);
        }
    }
}

static void norm_forward_item(const void *arguments, ptrdiff_t item)
{
    const norm_t *a = arguments;
    if (a->bf16)
        norm_forward(a, item, 1);
    else
        norm_forward(a, item, 0);
}

static void norm_backward_item(const void *arguments, ptrdiff_t item)
{
    const norm_t *a = arguments;
    if (a->bf16)
        norm_backward(a, item, 1);
    else
        norm_backward(a, item, 0);
}

/* Adds up the images' shares of the gradients of weight and bias, in the order of the images. */
static void norm_collect_item(const void *arguments, ptrdiff_t item)
{
    const norm_t *a = arguments;
    const ptrdiff_t blocks = (a->channels + LANES - 1) / LANES, start = item % blocks * LANES;
    const ptrdiff_t width = a->channels - start < LANES ? a->channels - start : LANES;
    const float *shares = a->partial + item / blocks * a->images * a->channels + start;
    float *out = (item < blocks ? a->bias_grad : a->weight_grad) + start;
    double sum[LANES] = {0};
    for (ptrdiff_t image = 0; image < a->images; image++)
        for (ptrdiff_t c = 0; c < width; c++)
            sum[c] += shares[image * a->channels + c];
    for (ptrdiff_t c = 0; c < width; c++)
        out[c] = (float)sum[c];
}

/* Whole groups, as many as fit the cache, but so few that every thread gets an image's share. */
static ptrdiff_t norm_width(const norm_t *a, int tensors, int threads)
{
    const ptrdiff_t each = a->channels / a->groups, pixel = a->pixels * (a->bf16 ? 2 : 4) * tensors;
    const ptrdiff_t line = (64 + each - 1) / each * each; /* narrower pieces would share cache lines */
    ptrdiff_t width = CACHE / pixel < LANES ? CACHE / pixel : LANES;
    if (a->images < 4 * threads && width > a->channels * a->images / (4 * threads))
        width = a->channels * a->images / (4 * threads);
    width = width / each * each;
    return width > line ? width : (line <= LANES ? line : each);
}

/* x, out: (images, pixels, channels); weight, bias: (channels); stats: (images, groups) stats_t.
 * channels must be divisible by groups and channels / groups at most LANES. */
void bit_norm_forward(const void *x, void *out, const float *weight, const float *bias, void *stats, ptrdiff_t images,
                      ptrdiff_t pixels, ptrdiff_t channels, ptrdiff_t groups, double eps, int bf16, int threads)
{
    norm_t a = {.x = x, .out = out, .weight = weight, .bias = bias, .stats = stats, .images = images, .pixels = pixels,
                .channels = channels, .groups = groups, .eps = eps, .bf16 = bf16};
    a.width = norm_width(&a, 1, threads);
    run(norm_forward_item, &a, images * ((channels + a.width - 1) / a.width), threads);
}

/* As above; grad: gradient of the result; partial: room for 2 * images * channels floats; out: the gradient of x. */
void bit_norm_backward(const void *x, const void *grad, void *out, const float *weight, const float *bias, void *stats,
                       float *partial, float *weight_grad, float *bias_grad, ptrdiff_t images, ptrdiff_t pixels,
                       ptrdiff_t channels, ptrdiff_t groups, int bf16, int threads)
{
    norm_t a = {.x = x, .grad = grad, .out = out, .weight = weight, .bias = bias, .stats = stats,
                .partial = partial, .weight_grad = weight_grad, .bias_grad = bias_grad, .images = images,
                .pixels = pixels, .channels = channels, .groups = groups, .bf16 = bf16};
    a.width = norm_width(&a, 2, threads);
    run(norm_backward_item, &a, images * ((channels + a.width - 1) / a.width), threads);
    run(norm_collect_item, &a, 2 * ((channels + LANES - 1) / LANES), threads);
}

/* ---- weight standardization ---- */

typedef struct {
    const float *kernel;
    const void *grad;
    void *out;
    stats_t *stats;
    ptrdiff_t length;
    double eps;
    int bf16;
} standardize_t;

INLINE void standardize_forward(const standardize_t *a, ptrdiff_t item, const int bf16)
{
    const ptrdiff_t length = a->length, origin = item * length;
    const float *kernel = a->kernel + origin;
    const double count = (double)length;
    float sum = 0, offset = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (ptrdiff_t i = 0; i < length; i++)
        sum += kernel[i];
    const float about = (float)(sum / count);
#pragma omp simd reduction(+ : offset, square)
    for (ptrdiff_t i = 0; i < length; i++) {
        float d = kernel[i] - about;
        offset += d;
        square += d * d;
    }
    const double mean = offset / count, variance = square / count - mean * mean;
    stats_t s;
    split(about + mean, &s.high, &s.low);
    s.scale = (float)(1 / sqrt((variance < 0 ? 0 : variance) + a->eps));
    a->stats[item] = s;
    const float shift = -s.low * s.scale;
#pragma omp simd
    for (ptrdiff_t i = 0; i < length; i++)
        store(a->out, origin + i, (kernel[i] - s.high) * s.scale + shift, bf16);
}

INLINE void standardize_backward(const standardize_t *a, ptrdiff_t item, const int bf16)
{
    const ptrdiff_t length = a->length, origin = item * length;
    const float *kernel = a->kernel + origin;
    const stats_t s = a->stats[item];
    float sum = 0, slope = 0;
#pragma omp simd reduction(+ : sum, slope)
    for (ptrdiff_t i = 0; i < length; i++) {
        float g = load(a->grad, origin + i, bf16);
        sum += g;
        slope += g * (kernel[i] - s.high);
    }
    const double count = (double)length, scale = s.scale;
    const double factor = scale * scale * scale * (slope - (double)s.low * sum) / count;
    const float along = (float)-factor, constant = (float)(factor * s.low - scale * sum / count);
    float *out = (float *)a->out + origin;
#pragma omp simd
    for (ptrdiff_t i = 0; i < length; i++)
        out[i] = load(a->grad, origin + i, bf16) * s.scale + ((kernel[i] - s.high) * along + constant);
}

static void standardize_forward_item(const void *arguments, ptrdiff_t item)
{
    const standardize_t *a = arguments;
    if (a->bf16)
        standardize_forward(a, item, 1);
    else
        standardize_forward(a, item, 0);
}

static void standardize_backward_item(const void *arguments, ptrdiff_t item)
{
    const standardize_t *a = arguments;
    if (a->bf16)
        standardize_backward(a, item, 1);
    else
        standardize_backward(a, item, 0);
}

/* kernel: (outputs, length) floats; out: the same shape, bfloat16 or float32; stats: (outputs) stats_t. */
void bit_standardize_forward(const float *kernel, void *out, void *stats, ptrdiff_t outputs, ptrdiff_t length, double eps,
                             int bf16, int threads)
{
    standardize_t a = {.kernel = kernel, .out = out, .stats = stats, .length = length, .eps = eps, .bf16 = bf16};
    run(standardize_forward_item, &a, outputs, threads);
}

/* grad: gradient of the result, bfloat16 or float32; out: gradient of the kernel, float32. */
void bit_standardize_backward(const float *kernel, const void *grad, float *out, void *stats, ptrdiff_t outputs,
                              ptrdiff_t length, int bf16, int threads)
{
    standardize_t a = {.kernel = kernel, .grad = grad, .out = out, .stats = stats, .length = length, .bf16 = bf16};
    run(standardize_backward_item, &a, outputs, threads);
}
