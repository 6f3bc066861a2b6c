//! Tests of how many manifests are in memory at the same time.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use super::*;
use crate::archive::manifest::MAX_BYTES;
use crate::archive::test_store::TestStore;

/// Six parallel checks once took 413 MiB, because each kept its manifest, twice, while it waited for a slot.
#[tokio::test(start_paused = true)]
async fn one_manifest_is_in_memory_however_many_checks_wait() {
    let counting = Arc::new(TestStore { delay: Duration::from_secs(2), ..TestStore::default() });
    let store = Arc::new(Store::new(Arc::<TestStore>::clone(&counting)));
    let uids: Vec<String> = (0..6).map(|n| format!("u{n}")).collect();
    for uid in &uids {
        let manifest = serde_json::json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": uid}, "createdAt": 1,
            "sessionPaths": [], "sessions": [], "problems": [], "problemCount": 0});
        // So long that it cannot be of the current version.
        let mut manifest = serde_json::to_vec(&manifest).unwrap();
        manifest.resize(MAX_BYTES + 1, b' ');
        store.put_once(&manifest_key(uid), manifest).await.unwrap();
    }
    let (sender, mut checked) = mpsc::channel(16);
    let verifier = Verifier::new(store, sender);
    for uid in &uids {
        assert_eq!(verifier.check(uid, &Origin::default()), Verification::Running);
    }
    verifier.check("nobody", &Origin::default());
    // Whether an archive exists does not need a slot.
    assert_eq!(checked.recv().await.as_deref(), Some("nobody"));
    assert_eq!(verifier.check("nobody", &Origin::default()), Verification::Missing);
    let asked = verifier.with_archive(("t", "u0"), async |_, _, archive| Ok(archive.computer().uid.clone()));
    assert_eq!(asked.await.unwrap(), "u0");
    for _ in &uids {
        checked.recv().await.unwrap();
    }
    assert!(uids.iter().all(|uid| matches!(verifier.check(uid, &Origin::default()), Verification::Valid(_))));
    assert_eq!(counting.most.load(Ordering::SeqCst), 1, "L3: manifests are read at the same time");
}
