//! Ops of a recorded step that run side by side: which may is found from the bytes they touch.
//!
//! A step is a list of ops in an order that is always right. Most of a backward pass is one chain,
//! each op reading what the one before wrote; the gradients of weights hang beside it, and nothing
//! asks for them before the update. They go to other lanes in turn, so that small kernels, which leave
//! most of a card idle, overlap. Whatever touches the same bytes, one of them writing, keeps its order, memory
//! that is used again included; so results are those of one lane, bit for bit.

use std::collections::{HashMap, HashSet};

use super::driver::Driver;
use super::host::{Span, meet};
use crate::Result;

/// The bytes an op reads and writes, by address.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Only read.
    pub reads: Vec<Span>,
    /// Written, or read and written; workspace included.
    pub writes: Vec<Span>,
    /// Must stay in the first lane.
    pub first_lane: bool,
}

impl Touched {
    /// True where the two must keep their order.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let any = |a: &[Span], b: &[Span]| a.iter().any(|&a| b.iter().any(|&b| meet(a, b)));
        any(&self.writes, &other.writes)
            || any(&self.writes, &other.reads)
            || any(&self.reads, &other.writes)
    }
}

/// Where an op goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// 0: the chain; others: beside it.
    pub lane: usize,
    /// The ops of other lanes that have to end first, at most one a lane, where they were not waited for
    /// before.
    pub after: Vec<usize>,
}

/// Lane, of so many, and waits of every op of a list. An op goes beside the chain where the next op does
/// not need it to have ended.
pub fn schedule(ops: &[Touched], count: usize) -> Vec<Place> {
    let beside = |i: usize| {
        !ops[i].first_lane && ops.get(i + 1).is_some_and(|next| !next.conflicts(&ops[i]))
    };
    let mut turns = (1..count.max(2)).cycle();
    let mut lane_of = |i: usize| if beside(i) { turns.next().unwrap_or(1) } else { 0 };
    let lanes: Vec<usize> = (0..ops.len()).map(&mut lane_of).collect();
    // The last op of each other lane that each lane has waited for, counted from 1.
    let mut seen = vec![vec![0; count.max(2)]; count.max(2)];
    let place = |i: usize| {
        let lane = lanes[i];
        let wait = |other: usize| {
            let conflict = |&j: &usize| lanes[j] == other && ops[j].conflicts(&ops[i]);
            let after = (seen[lane][other]..i).rev().find(conflict)?;
            seen[lane][other] = after + 1;
            Some(after)
        };
        let after = (0..count.max(2)).filter(|&other| other != lane).filter_map(wait).collect();
        Place { lane, after }
    };
    (0..ops.len()).map(place).collect()
}

/// Has `enqueue` put each op of a list into its lane of a card that has several; all have joined the first
/// one at the end.
pub(super) fn side_by_side<D: Driver>(
    driver: &D,
    ops: &[Touched],
    enqueue: impl Fn(usize) -> Result<()>,
) -> Result<()> {
    let places = schedule(ops, driver.lanes());
    let awaited: HashSet<usize> = places.iter().flat_map(|p| p.after.iter().copied()).collect();
    let start = driver.stamp()?;
    let mut marks: HashMap<usize, D::Event> = HashMap::new();
    let mut lane = 0;
    let mut begun = vec![false; driver.lanes()];
    for (i, place) in places.iter().enumerate() {
        if place.lane != lane {
            lane = place.lane;
            driver.choose_lane(lane)?;
        }
        if lane > 0 && !std::mem::replace(&mut begun[lane], true) {
            driver.wait_for(&start)?;
        }
        for mark in place.after.iter().filter_map(|j| marks.get(j)) {
            driver.wait_for(mark)?;
        }
        enqueue(i)?;
        if awaited.contains(&i) {
            marks.insert(i, driver.stamp()?);
        }
    }
    let ends = (1..begun.len()).filter(|&lane| begun[lane]).map(|lane| {
        driver.choose_lane(lane)?;
        driver.stamp()
    });
    let ends: Vec<D::Event> = ends.collect::<Result<_>>()?;
    driver.choose_lane(0)?;
    ends.iter().try_for_each(|end| driver.wait_for(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    fn op(reads: &[u64], writes: &[u64]) -> Touched {
        let ranges = |all: &[u64]| all.iter().map(|&at| (8 * at, 8 * at + 8)).collect();
        Touched { reads: ranges(reads), writes: ranges(writes), first_lane: false }
    }

    #[test]
    fn gradients_of_weights_go_beside_the_chain() {
        // y gradient 1, x 2, w 3: w's gradient 4, x's gradient 5, of it 6; the update reads 4.
        let ops =
            [op(&[0], &[1]), op(&[1, 2], &[4]), op(&[1, 3], &[5]), op(&[5], &[6]), op(&[4], &[3])];
        let places = schedule(&ops, 2);
        let lanes: Vec<usize> = places.iter().map(|place| place.lane).collect();
        assert_eq!(lanes, [0, 1, 0, 1, 0]);
        assert_eq!(places[1].after, [0]);
        assert!(places[2].after.is_empty());
        // 3 reads what 2 wrote; 4 writes what 2 read and reads what 1 wrote.
        assert_eq!(places[3].after, [2]);
        assert_eq!(places[4].after, [1]);
    }

    #[test]
    fn what_must_stay_stays() {
        let mut ops = [op(&[0], &[1]), op(&[2], &[3])];
        assert_eq!(schedule(&ops, 2)[0].lane, 1);
        ops[0].first_lane = true;
        assert_eq!(schedule(&ops, 2)[0].lane, 0);
    }

    /// Every pair that must keep its order does, by lane or by a chain of waits.
    #[test]
    fn every_conflict_is_ordered() {
        let mut rng = Rng::new(7, 0);
        for round in 0..200 {
            let mut few = |n: usize| -> Vec<u64> {
                (0..1 + rng.below(n)).map(|_| rng.below(12) as u64).collect()
            };
            let ops: Vec<Touched> = (0..40).map(|_| op(&few(3), &few(2))).collect();
            let places = schedule(&ops, 2 + round % 4);
            // What has ended before each op begins.
            let mut before: Vec<Vec<bool>> = Vec::new();
            for (i, place) in places.iter().enumerate() {
                let mut ended = vec![false; ops.len()];
                let same = (0..i).rev().find(|&j| places[j].lane == place.lane);
                for j in same.into_iter().chain(place.after.iter().copied()) {
                    ended[j] = true;
                    (0..j).for_each(|k| ended[k] |= before[j][k]);
                }
                before.push(ended);
            }
            for i in 0..ops.len() {
                for j in (0..i).filter(|&j| ops[j].conflicts(&ops[i])) {
                    assert!(before[i][j], "{j} before {i}: {places:?}");
                }
            }
        }
    }
}
