// Physical limits of this machine at this moment: what any decoder is measured against.
//
//     cc -O3 -march=native -pthread benchmarks/limits.c -o limits && ./limits [samples]
//
// Each sample is one line of JSON, a list of {"measure", "threads", "value", "unit"}:
//   read 1GiB, 43MB, 16MB   GB/s (10^9 bytes) of plain loads, split evenly over the threads. From DRAM; from a cache as
//                           large as the layers of a 101M-parameter model at 4.5 bits; from a mid-sized cache.
//   int8 dot                GOPS (multiply and add count as two) of the widest int8 dot product the CPU has
//   int8 dot, scaled        the same where every group of 32 has its scales, as in 4-bit weights: after eight dot products
//                           of one sum a conversion, the product of two scales and a multiply-add; 0 without AVX-512 VNNI
//   fp32 fma                GFLOPS
//   round trip              ns for one cache line to go to the other core and back: tells whether two virtual cores
//                           share a last-level cache just now, which moves every two-thread number
// One thread and two. Threads are pinned to the first CPUs that this process may run on. Linux, GCC or Clang.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

enum { MAX_THREADS = 2, ACCUMULATORS = 12 };  // 12 hide a latency of 4 to 6 cycles at two a cycle

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- the work: each returns a value that depends on all of it, so that the compiler keeps it ----

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));

// Reads in so many streams side by side, an equal part of the block apart: which number suits the hardware's prefetchers
// differs between DRAM and caches, so main() takes the better of one and four.
static uint64_t read_block(const char *block, size_t bytes, size_t streams) {
  size_t part = bytes / streams / (4 * VECTOR_BYTES) * (4 * VECTOR_BYTES);
  Words sum[4] = {{0}};
  for (size_t at = 0; at < part; at += 4 * VECTOR_BYTES)
    for (size_t stream = 0; stream < streams; stream++)
      for (size_t i = 0; i < 4; i++) sum[i] ^= *(const Words *)(block + stream * part + at + i * VECTOR_BYTES);
  Words all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1];
}

// Keeps a value in a register and its computation in the loop; without it the equal sums below would become one.
#if defined(__AVX512F__)
#define KEEP(value) __asm__ volatile("" : "+v"(value))
#elif defined(__x86_64__)
#define KEEP(value) __asm__ volatile("" : "+x"(value))
#elif defined(__aarch64__)
#define KEEP(value) __asm__ volatile("" : "+w"(value))
#else
#define KEEP(value) (void)(value)
#endif

// Twelve sums, each a variable of its own: an array of them would live in memory.
#define TWELVE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

static double fp32_operations(long steps, uint64_t *sink) {
  Floats scale, term;
  for (size_t lane = 0; lane < VECTOR_BYTES / 4; lane++) scale[lane] = 0.5f, term[lane] = 0.25f;
#define START(i) Floats sum##i = term;
#define STEP(i) sum##i = sum##i * scale + term; KEEP(sum##i);
#define FINISH(i) *sink += (uint64_t)sum##i[0];
  TWELVE(START)
  for (long step = 0; step < steps; step++) { TWELVE(STEP) }
  TWELVE(FINISH)
#undef START
#undef STEP
#undef FINISH
  return 2.0 * (VECTOR_BYTES / 4) * ACCUMULATORS * (double)steps;
}

#if defined(__AVX512VNNI__)
typedef __m512i Dots;
static Dots all_ones(void) { return _mm512_set1_epi8(1); }
static Dots dot(Dots sum, Dots a, Dots b) { return _mm512_dpbusd_epi32(sum, a, b); }
enum { DOT_OPERATIONS = 128 };
#elif defined(__AVXVNNI__)
typedef __m256i Dots;
static Dots all_ones(void) { return _mm256_set1_epi8(1); }
static Dots dot(Dots sum, Dots a, Dots b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
enum { DOT_OPERATIONS = 64 };
#elif defined(__AVX2__)
typedef __m256i Dots;
static Dots all_ones(void) { return _mm256_set1_epi8(1); }
static Dots dot(Dots sum, Dots a, Dots b) {
  KEEP(a);
  Dots pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
enum { DOT_OPERATIONS = 64 };
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t Dots;
static Dots all_ones(void) { return vreinterpretq_s32_s8(vdupq_n_s8(1)); }
static Dots dot(Dots sum, Dots a, Dots b) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
enum { DOT_OPERATIONS = 32 };
#else
typedef Words Dots;  // no such instruction: reported as 0
static Dots all_ones(void) { return (Dots){1, 1}; }
static Dots dot(Dots sum, Dots a, Dots b) { return sum + (a & b); }
enum { DOT_OPERATIONS = 0 };
#endif

static double int8_operations(long steps, uint64_t *sink) {
  Dots ones = all_ones();
  uint64_t first;
#define START(i) Dots sum##i = ones;
#define STEP(i) sum##i = dot(sum##i, ones, ones); KEEP(sum##i);
#define FINISH(i) memcpy(&first, &sum##i, sizeof first), *sink += first;
  TWELVE(START)
  for (long step = 0; step < steps; step++) { TWELVE(STEP) }
  TWELVE(FINISH)
#undef START
#undef STEP
#undef FINISH
  return (double)DOT_OPERATIONS * ACCUMULATORS * (double)steps;
}

static double scaled_operations(long steps, uint64_t *sink) {
#if defined(__AVX512VNNI__)
  Dots ones = all_ones();
  __m512 scale = _mm512_set1_ps(0.5f);
#define START(i) Dots dots##i = ones; __m512 sum##i = scale;
#define STEP(i) dots##i = dot(dots##i, ones, ones); KEEP(dots##i);
#define SCALE(i)                                                                              \
  KEEP(scale); /* so that each product is computed */                                         \
  sum##i = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots##i), _mm512_mul_ps(scale, scale), sum##i); \
  KEEP(sum##i);
#define FINISH(i) *sink += (uint64_t)_mm512_cvtss_f32(sum##i);
  TWELVE(START)
  for (long step = 0; step < steps; step += 8) {
    TWELVE(STEP) TWELVE(STEP) TWELVE(STEP) TWELVE(STEP) TWELVE(STEP) TWELVE(STEP) TWELVE(STEP) TWELVE(STEP)
    TWELVE(SCALE)
  }
  TWELVE(FINISH)
#undef START
#undef STEP
#undef SCALE
#undef FINISH
  return (double)DOT_OPERATIONS * ACCUMULATORS * (double)steps;
#else
  (void)steps, (void)sink;
  return 0.0;
#endif
}

// ---- running it on one thread or two ----

enum Kind { READ, INT8_DOT, SCALED_DOT, FP32_FMA };
typedef struct {
  const char *name, *unit;
  enum Kind kind;
  size_t bytes;
  int repeats;
} Measure;

static const Measure MEASURES[] = {
    {"read 1GiB", "GB/s", READ, (size_t)1 << 30, 2}, {"read 43MB", "GB/s", READ, 43000000, 40},
    {"read 16MB", "GB/s", READ, 16000000, 120},      {"int8 dot", "GOPS", INT8_DOT, 0, 10},
    {"int8 dot, scaled", "GOPS", SCALED_DOT, 0, 10}, {"fp32 fma", "GFLOPS", FP32_FMA, 0, 10},
};

typedef struct {
  const Measure *measure;
  const char *block;
  size_t bytes, streams;
  int cpu;
  pthread_barrier_t *start;
  double began, ended, done;  // seconds; bytes or operations
  uint64_t sink;
} Job;

static int cpu_number(int index) {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && index-- == 0) return cpu;
  return -1;
}

static void pin(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

static void *work(void *argument) {
  Job *job = argument;
  pin(job->cpu);
  if (job->measure->kind == READ) job->sink += read_block(job->block, job->bytes, job->streams);  // fills the cache
  pthread_barrier_wait(job->start);
  job->began = seconds();
  for (int i = 0; i < job->measure->repeats; i++) {
    switch (job->measure->kind) {
      case READ: job->sink += read_block(job->block, job->bytes, job->streams), job->done += (double)job->bytes; break;
      case INT8_DOT: job->done += int8_operations(1000000, &job->sink); break;
      case SCALED_DOT: job->done += scaled_operations(1000000, &job->sink); break;
      case FP32_FMA: job->done += fp32_operations(1000000, &job->sink); break;
    }
  }
  job->ended = seconds();
  return NULL;
}

// Bytes or operations a nanosecond, that is GB/s, GOPS or GFLOPS, from the first start to the last end.
static double rate(const Measure *measure, const char *block, size_t streams, const int *cpus, int threads) {
  pthread_t handles[MAX_THREADS];
  Job jobs[MAX_THREADS];
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, (unsigned)threads);
  size_t share = measure->bytes / (size_t)threads & ~(size_t)4095;
  for (int i = 0; i < threads; i++) {
    jobs[i] = (Job){.measure = measure, .block = block + (size_t)i * share, .bytes = share, .streams = streams,
                    .cpu = cpus[i], .start = &start};
    pthread_create(&handles[i], NULL, work, &jobs[i]);
  }
  double began = 1e300, ended = 0, done = 0;
  for (int i = 0; i < threads; i++) {
    pthread_join(handles[i], NULL);
    if (jobs[i].began < began) began = jobs[i].began;
    if (jobs[i].ended > ended) ended = jobs[i].ended;
    done += jobs[i].done;
  }
  pthread_barrier_destroy(&start);
  return done / (ended - began) / 1e9;
}

static _Alignas(128) int ball;
enum { VOLLEYS = 100000 };

static void rally(int cpu, int parity) {  // waits for the ball's parity, then passes it on
  pin(cpu);
  for (int i = 0; i < VOLLEYS; i++) {
    while (__atomic_load_n(&ball, __ATOMIC_ACQUIRE) != 2 * i + parity) {
    }
    __atomic_store_n(&ball, 2 * i + parity + 1, __ATOMIC_RELEASE);
  }
}

static void *answer(void *cpu) {
  rally(*(int *)cpu, 1);
  return NULL;
}

static void *round_trip(void *argument) {
  int *cpus = argument;
  static double nanoseconds;
  pthread_t other;
  ball = 0;
  pthread_create(&other, NULL, answer, &cpus[1]);
  double began = seconds();
  rally(cpus[0], 0);
  pthread_join(other, NULL);
  nanoseconds = (seconds() - began) / VOLLEYS * 1e9;
  return &nanoseconds;
}

int main(int count, char **arguments) {
  int samples = count > 1 ? atoi(arguments[1]) : 5;
  size_t bytes = (size_t)1 << 30;
  int cpus[MAX_THREADS] = {cpu_number(0), cpu_number(1)}, threads_here = cpus[1] < 0 ? 1 : 2;
  char *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED || samples < 1) {
    fprintf(stderr, "usage: limits [samples]; needs 1 GiB of free memory\n");
    return 1;
  }
  madvise(block, bytes, MADV_HUGEPAGE);
  memset(block, 1, bytes);
  for (int sample = 0; sample < samples; sample++) {
    printf("[");
    for (size_t i = 0; i < sizeof MEASURES / sizeof *MEASURES; i++)
      for (int threads = 1; threads <= threads_here; threads++) {
        double one = rate(&MEASURES[i], block, 1, cpus, threads), four = rate(&MEASURES[i], block, 4, cpus, threads);
        printf("{\"measure\": \"%s\", \"threads\": %d, \"value\": %.1f, \"unit\": \"%s\"}, ", MEASURES[i].name, threads,
               one > four ? one : four, MEASURES[i].unit);
      }
    pthread_t pair;  // a thread of its own, so that pinning does not stay with this one
    void *nanoseconds = NULL;
    if (threads_here == 2) {
      pthread_create(&pair, NULL, round_trip, cpus);
      pthread_join(pair, &nanoseconds);
    }
    printf("{\"measure\": \"round trip\", \"threads\": %d, \"value\": %.1f, \"unit\": \"ns\"}]\n", threads_here,
           nanoseconds ? *(double *)nanoseconds : 0.0);
    fflush(stdout);
  }
  return 0;
}
