//! Tests of turns: who is next, the bounds, and waiters that go away or are turned away.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;

const TURN: Duration = Duration::from_secs(60);

fn turns(all: usize, namespace: usize, computer: usize, waiting: usize) -> BoundedTurns {
    BoundedTurns::new("test", QueueBounds { turns: Bounds { all, namespace, computer }, waiting })
}

/// Each of these computers takes turns of this size and length, one after the other.
fn busy(turns: &BoundedTurns, tasks: &mut JoinSet<()>, namespace: &str, computers: u32, size: usize) {
    for n in 0..computers {
        let (turns, namespace) = (turns.clone(), namespace.to_owned());
        tasks.spawn(async move {
            // Not in lockstep.
            sleep(TURN * (n % 7) / 7).await;
            loop {
                let _turn = turns.take(&namespace, &n.to_string(), size).await.unwrap();
                sleep(TURN).await;
            }
        });
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    timeout(Duration::from_millis(1), future).await.ok()
}

/// L3: shares once belonged to computers. A tenant with a hundred of them had a hundred shares, and another one waited for twenty turns.
#[tokio::test(start_paused = true)]
async fn a_tenant_waits_for_one_turn_however_many_computers_another_one_has() {
    let (turns, mut tasks) = (turns(5, 5, 3, usize::MAX), JoinSet::new());
    busy(&turns, &mut tasks, "giant", 100, 1);
    sleep(3 * TURN).await;
    for n in 0..20 {
        let began = Instant::now();
        let _turn = turns.take("small", &n.to_string(), 1).await.unwrap();
        assert!(began.elapsed() <= TURN, "{:?}", began.elapsed());
    }
}

/// L9: cost counts, not requests. The tenant with large turns has as many bytes as the other one.
#[tokio::test(start_paused = true)]
async fn shares_are_weighed_by_size() {
    let (turns, mut tasks) = (turns(8, 8, 8, usize::MAX), JoinSet::new());
    busy(&turns, &mut tasks, "large", 10, 8);
    busy(&turns, &mut tasks, "small", 100, 1);
    sleep(TURN * 300).await;
    let had = |name: &str| turns.turns.locked().namespaces[name].had;
    let (large, small) = (had("large"), had("small"));
    assert!(large.abs_diff(small) <= 16 && large > 900, "{large} and {small}");
}

/// Within a namespace its computers take turns, and the share of a namespace is its computers' together.
#[tokio::test(start_paused = true)]
async fn computers_of_a_namespace_share_what_it_has() {
    let turns = turns(4, 3, 2, usize::MAX);
    let first = (turns.take("a", "1", 1).await, turns.take("a", "1", 1).await);
    assert!(soon(turns.take("a", "1", 1)).await.is_none(), "one computer has more than its share");
    let second = turns.take("a", "2", 1).await;
    assert!(soon(turns.take("a", "3", 1)).await.is_none(), "one namespace has more than its share");
    let other = turns.take("b", "1", 1).await;
    assert_eq!(turns.free(), 0);
    drop((first, second, other));
    assert_eq!(turns.free(), 4);
    assert!(turns.turns.locked().namespaces.is_empty() && turns.turns.locked().granted.is_empty());
    let (whole, mut waiting) = (turns.take("b", "0", 2).await, Vec::new());
    let rest = turns.take("a", "1", 2).await;
    for uid in ["1", "1", "2"] {
        waiting.push(Box::pin(turns.take("a", uid, 1)));
        assert!(soon(waiting.last_mut().unwrap()).await.is_none());
    }
    drop(whole);
    assert!(soon(&mut waiting[2]).await.is_some(), "the computer that has had less comes first");
    drop(rest);
}

/// A small turn would fit before it, again and again.
#[tokio::test(start_paused = true)]
async fn a_large_turn_is_not_passed_over() {
    let (turns, mut tasks) = (turns(8, 8, 8, usize::MAX), JoinSet::new());
    for namespace in ["a", "b", "c"] {
        busy(&turns, &mut tasks, namespace, 20, 1);
    }
    sleep(3 * TURN).await;
    assert!(timeout(9 * TURN, turns.take("large", "0", 8)).await.is_ok());
}

/// A pod that is gone has no place, whether it waits or its turn has just come.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_frees_its_place() {
    let turns = turns(1, 1, 1, 2);
    let held = turns.take("a", "1", 1).await.unwrap();
    assert!(!held.is_awaited());
    for _ in 0..10 {
        assert!(soon(turns.take("b", "1", 1)).await.is_none());
    }
    assert!(!held.is_awaited() && turns.turns.try_take("b", "1", 1).is_none() && !held.is_awaited());
    let mut gone = Box::pin(turns.take("b", "1", 1));
    assert!(soon(&mut gone).await.is_none() && held.is_awaited());
    drop(held);
    drop(gone);
    assert!(turns.turns.try_take("c", "1", 1).is_some());
    assert!(turns.turns.locked().namespaces.is_empty() && turns.turns.locked().granted.is_empty());
}

/// Each waiter of the endpoint has a connection, and one tenant must not have them all.
#[tokio::test(start_paused = true)]
async fn the_tenant_with_the_most_waiters_is_turned_away() {
    let turns = turns(1, 1, 1, 4);
    let held = turns.take("a", "0", 1).await.unwrap();
    let mut tasks = JoinSet::new();
    let wait = |tasks: &mut JoinSet<_>, namespace: &'static str, uid: &'static str| {
        let turns = turns.clone();
        tasks.spawn(async move { (namespace, uid, turns.take(namespace, uid, 1).await.map(drop)) });
    };
    for uid in ["1", "1", "1", "2"] {
        wait(&mut tasks, "a", uid);
        tokio::task::yield_now().await;
    }
    for (namespace, turned_away) in [("a", ("a", "1")), ("b", ("a", "1")), ("b", ("a", "3"))] {
        wait(&mut tasks, namespace, "3");
        let (name, uid, result) = tasks.join_next().await.unwrap().unwrap();
        assert_eq!(((name, uid), result), (turned_away, Err(Busy)), "for {namespace}");
    }
    drop(held);
    while let Some(ended) = tasks.join_next().await {
        assert_eq!(ended.unwrap().2, Ok(()));
    }
    assert_eq!(turns.free(), 1);
}

/// Archives to be read back once had to handle an answer that cannot be: nobody turns them away.
#[tokio::test(start_paused = true)]
async fn any_number_may_wait_where_there_is_no_bound() {
    let (turns, mut tasks) = (Turns::of("test", 1, 1), JoinSet::new());
    for n in 0..1000 {
        let turns = turns.clone();
        tasks.spawn(async move { drop::<Turn>(turns.take("a", &n.to_string(), 1).await) });
    }
    assert_eq!(tasks.join_all().await.len(), 1000);
    assert_eq!(turns.free(), 1);
}

/// A newcomer once was refused when everybody had one waiter: it came back after seconds, and those who had just been served were faster.
#[tokio::test(start_paused = true)]
async fn a_newcomer_is_not_turned_away_for_those_who_have_had_more() {
    let turns = turns(1, 1, 1, 12);
    for n in 0..12 {
        drop(turns.take(&n.to_string(), "0", 1).await.unwrap());
    }
    let (held, mut tasks) = (turns.take("0", "0", 1).await.unwrap(), JoinSet::new());
    for n in 0..12 {
        let turns = turns.clone();
        tasks.spawn(async move { turns.take(&n.to_string(), "0", 1).await.map(drop) });
        tokio::task::yield_now().await;
    }
    let newcomer = tokio::spawn({
        let turns = turns.clone();
        async move { turns.take("new", "0", 1).await.map(drop) }
    });
    assert_eq!(tasks.join_next().await.unwrap().unwrap(), Err(Busy));
    drop(held);
    assert_eq!(newcomer.await.unwrap(), Ok(()));
}

/// What its bound withholds from a namespace is not saved for later, and nobody inherits it.
#[tokio::test(start_paused = true)]
async fn nobody_saves_what_a_bound_withheld() {
    let turns = turns(2, 1, 1, usize::MAX);
    let held = turns.take("b", "0", 1).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let wait = |namespace: &'static str, n: u32| {
        let (turns, order) = (turns.clone(), Arc::clone(&order));
        tokio::spawn(async move {
            let _turn = turns.take(namespace, &n.to_string(), 1).await.unwrap();
            order.lock().push(namespace);
            sleep(TURN).await;
        })
    };
    for n in 1..=9 {
        wait("b", n);
    }
    for n in 0..20 {
        wait("a", n);
    }
    // Only a can be served beside the first b. In the middle of a turn, so that the next to be served is b.
    sleep(10 * TURN + TURN / 2).await;
    assert!(order.lock().iter().all(|name| *name == "a"), "{order:?}");
    order.lock().clear();
    drop(held);
    tokio::task::yield_now().await;
    for n in 0..9 {
        wait("c", n);
    }
    sleep(8 * TURN).await;
    let served = order.lock();
    let of = |name: &str| served.iter().filter(|of| **of == name).count();
    assert!(of("a") >= 3 && of("b") >= 3 && of("c") >= 3, "{served:?}");
}

/// A tenant with one request at a time owes what its last one took, although it waits for nothing in between.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_comes_back_has_had_what_it_had() {
    let (turns, mut tasks, had) = (turns(8, 8, 8, usize::MAX), JoinSet::new(), [Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0))]);
    for (namespace, computers, size) in [("large", 1, 8), ("small", 2, 1)] {
        for n in 0..computers {
            let (turns, had) = (turns.clone(), Arc::clone(&had[usize::from(namespace == "small")]));
            tasks.spawn(async move {
                loop {
                    let turn = turns.take(namespace, &n.to_string(), size).await.unwrap();
                    *had.lock() += size;
                    sleep(TURN).await;
                    drop(turn);
                }
            });
        }
    }
    sleep(TURN * 300).await;
    let [large, small] = had.map(|had| *had.lock());
    assert!(small * 10 > large * 7 && large > 300, "{large} and {small}");
}

/// Of the next test.
fn hold(turns: &BoundedTurns, floor: &Mutex<u64>) {
    let state = turns.turns.locked();
    let before = std::mem::replace(&mut *floor.lock(), state.floor);
    assert!(before <= state.floor, "what was served falls from {before} to {}", state.floor);
    assert!(state.held <= 10 && state.waiting <= 12);
    assert_eq!(state.held, state.namespaces.values().map(|namespace| namespace.held).sum::<usize>());
    for namespace in state.namespaces.values() {
        assert!(namespace.held <= 7 && namespace.computers.values().all(|computer| computer.held <= 4));
    }
}

/// Whatever comes and goes: the bounds hold, and nothing is left in the end.
#[tokio::test(start_paused = true)]
async fn the_bounds_hold_whatever_comes_and_goes() {
    use rand::{Rng as _, SeedableRng as _};
    let turns = turns(10, 7, 4, 12);
    let (mut tasks, floor) = (JoinSet::new(), Arc::new(Mutex::new(0)));
    for seed in 0..300_u64 {
        let (turns, floor) = (turns.clone(), Arc::clone(&floor));
        tasks.spawn(async move {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            for _ in 0..30 {
                sleep(Duration::from_millis(random.random_range(0..5000))).await;
                let (namespace, uid) = (random.random_range(0..4_u8).to_string(), random.random_range(0..3_u8).to_string());
                let take = turns.take(&namespace, &uid, random.random_range(1..6));
                let taken = timeout(Duration::from_millis(random.random_range(1..200)), take).await;
                hold(&turns, &floor);
                if matches!(taken, Ok(Ok(_))) {
                    sleep(Duration::from_millis(random.random_range(0..300))).await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let state = turns.turns.locked();
    assert!(state.namespaces.is_empty() && state.granted.is_empty() && (state.held, state.waiting) == (0, 0));
}
