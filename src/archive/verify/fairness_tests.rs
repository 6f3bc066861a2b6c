//! Tests of large archives of several tenants that are read back at the same time.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::archive::Unreadable;
use crate::archive::test_archives::{SMALL, home, noise, packed, put};
use crate::archive::test_store::TestStore;

/// L3: the third archive once waited until one of the others had been read to its end, for hours.
#[tokio::test(start_paused = true)]
async fn a_large_archive_gives_its_place_up_and_continues_where_it_was() {
    let test = Arc::new(TestStore { delay: Duration::from_millis(500), ..TestStore::default() });
    let store = Arc::new(Store::new(Arc::<TestStore>::clone(&test)));
    let mut packed = packed(home(&[("s/a.jsonl", &noise(6_000_000, 1))]).path(), &["s"], Unreadable::Block, SMALL);
    let all = packed.manifest.chunks.count;
    assert!(all > 1000, "{all} chunks");
    let (sender, mut checked) = mpsc::channel(8);
    let verifier = Verifier::new(Arc::clone(&store), sender);
    let uids = ["one", "two", "three"];
    let check = |uid: &str| verifier.check(uid, &Origin { namespace: uid.to_owned(), ..Origin::default() });
    for uid in uids {
        packed.manifest.computer.uid = uid.to_owned();
        put(&store, uid, &packed).await;
        assert_eq!(check(uid), Verification::Running);
    }
    tokio::time::sleep(Duration::from_secs(50)).await;
    let read = uids.map(|uid| verifier.progress(uid).map(|read| read.read));
    assert!(read.iter().all(Option::is_some) && checked.try_recv().is_err(), "{read:?} of {all}");
    for _ in uids {
        let uid = tokio::time::timeout(Duration::from_secs(600), checked.recv()).await.unwrap().unwrap();
        assert!(matches!(check(&uid), Verification::Valid(_)), "{uid}");
    }
    // A tenth more: the index, and what was read ahead of a pause.
    let reads = test.read.lock().unwrap().len() as u64;
    assert!(reads <= 3 * all * 11 / 10, "{reads} reads of three times {all} chunks");
}
