// digest: 64 bits of what tensors hold, so that a product of weights can be kept exactly as long as the weights stay what they
// were, whoever changed them and however. Reads at memory speed; 2^-64 is the chance to miss a change.
#include <cstring>
#include <vector>

#include "host/threads.h"
#include "host/tensors.h"
#include "host/utilities.h"

namespace hhmpn {
namespace {

constexpr uint64_t kPrime = 0x9E3779B97F4A7C15u;
constexpr int64_t kChunk = 64 << 10;
constexpr int kChains = 8;  // independent, to hide the multiplier's latency

// The shift brings high bits down again: without it two flipped signs would cancel.
inline uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * kPrime;
  return h ^ (h >> 32);
}

uint64_t digest_of(const char* bytes, int64_t count) {
  uint64_t h[kChains];
  for (int i = 0; i < kChains; i++) h[i] = kPrime * uint64_t(i + 1);
  int64_t at = 0;
  for (; at + 8 * kChains <= count; at += 8 * kChains) {
    uint64_t words[kChains];
    std::memcpy(words, bytes + at, sizeof words);
#pragma GCC unroll 8
    for (int i = 0; i < kChains; i++) h[i] = mix(h[i], words[i]);
  }
  for (; at < count; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, size_t(std::min<int64_t>(8, count - at)));
    h[0] = mix(h[0], word);
  }
  for (int i = 1; i < kChains; i++) h[0] = mix(h[0], h[i]);
  return mix(h[0], uint64_t(count));
}

}  // namespace

int64_t digest(std::vector<at::Tensor> tensors) {
  struct Chunk {
    const char* bytes;
    int64_t count;
  };
  std::vector<Chunk> chunks;
  std::vector<at::Tensor> kept;
  for (const at::Tensor& t : tensors) {
    kept.push_back(t.contiguous());
    const char* bytes = static_cast<const char*>(kept.back().const_data_ptr());
    const int64_t count = kept.back().numel() * kept.back().element_size();
    for (int64_t i = 0; i < count; i += kChunk) chunks.push_back({bytes + i, std::min(kChunk, count - i)});
  }
  std::vector<uint64_t> parts(chunks.size());
  parallel_tasks(int64_t(chunks.size()), 0,
                 [&](int64_t i, char*) { parts[i] = digest_of(chunks[i].bytes, chunks[i].count); });
  uint64_t all = kPrime;
  for (uint64_t part : parts) all = mix(all, part);
  return int64_t(all);
}

}  // namespace hhmpn
