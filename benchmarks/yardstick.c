/* The loops of dmf/kernels/sparse.py as they are written in C, without any art: what a
 * compiler makes of them is the yardstick. Compressed rows; `axis` 0 moves the factor
 * that has a row for each row of the block, 1 the other one. */
#include <stdint.h>

double gradient(int64_t rows, const int64_t *starts, const int32_t *columns,
                const float *values, const float *moving, const float *fixed, int64_t r,
                int64_t axis, float *result)
{
    double squares = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t e = starts[i]; e < starts[i + 1]; e++) {
            int64_t m = axis ? columns[e] : i, f = axis ? i : columns[e];
            float predicted = 0;
            for (int64_t s = 0; s < r; s++)
                predicted += moving[m * r + s] * fixed[f * r + s];
            float residual = predicted - values[e];
            squares += (double)residual * residual;
            for (int64_t s = 0; s < r; s++)
                result[m * r + s] += residual * fixed[f * r + s];
        }
    return 0.5 * squares;
}

void curvature(int64_t rows, const int64_t *starts, const int32_t *columns,
               const float *first, const float *second, const float *fixed, int64_t r,
               int64_t axis, double *result)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t e = starts[i]; e < starts[i + 1]; e++) {
            int64_t m = axis ? columns[e] : i, f = axis ? i : columns[e];
            float a = 0, b = 0;
            for (int64_t s = 0; s < r; s++) {
                a += first[m * r + s] * fixed[f * r + s];
                b += second[m * r + s] * fixed[f * r + s];
            }
            result[3 * m] += (double)a * a;
            result[3 * m + 1] += (double)a * b;
            result[3 * m + 2] += (double)b * b;
        }
}
