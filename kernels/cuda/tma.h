// Hopper's copy engine, the barriers in shared memory that count what it brought, and clusters: blocks
// of neighbouring multiprocessors that reach each other's shared memory.
#pragma once
#include "mma.h"

// A matrix as the copy engine sees it: address, extents, pitch, the box that it copies at once. The
// host's driver fills it in (cuTensorMapEncodeTiled); it is an argument of the kernel.
struct alignas(64) TensorMap { unsigned long long words[16]; };

// A barrier: 8 bytes of shared memory, by address. A phase of it ends when `count` threads have
// arrived and all announced bytes have come.
DEVICE void barrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory");
}
// Barriers made by this thread are seen by the copy engine and the other blocks of the cluster, once
// the cluster has met.
DEVICE void barriers_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and announces bytes to come.
DEVICE void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the barrier that lies there in block `rank` of the cluster. It says that memory was read; to
// publish what was written to the whole cluster would be a fence of hundreds of cycles.
DEVICE void barrier_arrive(unsigned barrier, unsigned rank) {
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
      "mbarrier.arrive.shared::cluster.b64 _, [there];}"
      :: "r"(barrier), "r"(rank) : "memory");
}
// Waits for the end of a phase of this parity. Of a fresh barrier the phase of parity 1 has ended.
DEVICE void barrier_wait(unsigned barrier, unsigned parity) {
  unsigned done;
  do {
    asm volatile(
        "{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.b32 %0, 1, 0, done;}"
        : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  } while (!done);
}

DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory");
}
// Copies the box at column x, row y to shared memory; zeros where the matrix ends. One thread asks.
DEVICE void load_box(unsigned to, const TensorMap& map, unsigned x, unsigned y, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      :: "r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier) : "memory");
}
// The same to that place in the blocks of `mask`, whose barriers at that place count the bytes.
DEVICE void load_box(unsigned to, const TensorMap& map, unsigned x, unsigned y, unsigned barrier, unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;"
      :: "r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(mask) : "memory");
}
// Copies a box from shared memory, clipped where the matrix ends. A thread's boxes are in groups.
DEVICE void store_box(const TensorMap& map, unsigned x, unsigned y, unsigned from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
               :: "l"(&map), "r"(x), "r"(y), "r"(from) : "memory");
}
DEVICE void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until the shared memory of all but `PENDING` groups may be written again.
template <int PENDING> DEVICE void stores_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(PENDING) : "memory");
}

// Registers of a thread from here on, in a branch that a whole warpgroup takes.
template <int COUNT> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT)); }
template <int COUNT> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT)); }

// Four 8 x 8 matrices of 2-byte elements: from shared memory as `load_matrices` of mma.h, and back.
DEVICE void load_matrices(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
DEVICE void store_matrices(unsigned row, unsigned r0, unsigned r1, unsigned r2, unsigned r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :: "r"(row), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}
