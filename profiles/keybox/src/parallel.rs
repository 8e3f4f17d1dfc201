//! Work on all cores, for wraps and signatures to many KeyBoxes.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

/// Fewer than this a core are not worth a thread: it takes as long to start as a wrap or a signature.
const SMALLEST_SHARE: usize = 16;

/// `work` of each of `items`, in their order, each core with an equal share of them. A few are done by the caller's thread alone.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let most = items.len() / SMALLEST_SHARE;
    // Asking for the cores takes a while, too.
    let cores = if most < 2 { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(most) };
    map_on(cores, items, work)
}

fn map_on<T: Sync, R: Send>(cores: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if cores < 2 {
        return items.iter().map(work).collect();
    }
    let (share, work) = (items.len().div_ceil(cores).max(1), &work);
    let (first, others) = items.split_at(share.min(items.len()));
    thread::scope(|scope| {
        let start = |items| scope.spawn(move || Vec::from_iter(<[T]>::iter(items).map(work)));
        let others: Vec<_> = others.chunks(share).map(start).collect();
        let mut results: Vec<R> = first.iter().map(work).collect();
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn every_item_is_done_once_in_order_by_any_number_of_cores() {
        for length in [0, 1, 2, 15, 16, 31, 32, 33, 100, 1000] {
            let items: Vec<usize> = (0..length).collect();
            let doubled: Vec<usize> = items.iter().map(|item| item * 2).collect();
            assert_eq!(map(&items, |item| item * 2), doubled);
            for cores in [0, 1, 2, 3, 7, 2000] {
                assert_eq!(map_on(cores, &items, |item| item * 2), doubled, "{length} on {cores}");
            }
        }
    }

    /// Would not end if one thread had to do it all.
    #[test]
    fn the_cores_work_at_the_same_time() {
        let (barrier, threads) = (Barrier::new(3), Mutex::new(BTreeSet::new()));
        map_on(3, &[(); 3], |()| {
            barrier.wait();
            threads.lock().unwrap().insert(format!("{:?}", thread::current().id()));
        });
        assert_eq!(threads.into_inner().unwrap().len(), 3);
    }

    #[test]
    #[should_panic(expected = "in the middle")]
    fn a_panic_comes_through() {
        map_on(4, &[1, 2, 3, 4, 5, 6, 7, 8], |item| assert!(*item != 8, "in the middle"));
    }
}
