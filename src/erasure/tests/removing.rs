//! Tests of an erasure that removes: what its status says meanwhile, when it is complete, and what ends it; and of what is accepted as a UID.

use kube::CustomResourceExt as _;

use super::*;

/// Nobody may read that nothing was removed while it is removed.
#[tokio::test]
async fn the_status_says_that_it_removes_before_it_removes() {
    let world = World::new().await;
    world.set(|c| c.holds = Ok(vec![vec![of_computer("case-7", UID)]]));
    assert_eq!(world.pass().await["Blocked"].0, "True");
    world.set(|c| {
        c.holds = Ok(vec![vec![]]);
        c.blocked.clear();
        c.unwritable = true;
    });
    let before = world.objects().await;
    assert_eq!(world.reconciler.run(&world.erasure()).await, Some(AGAIN));
    assert_eq!(world.objects().await, before, "nothing is removed unless the status says so");
    world.set(|c| {
        c.blocked.clear();
        c.unwritable = false;
    });
    assert_eq!(world.pass().await["Blocked"].0, "False");
    let blocked = world.cluster.lock().blocked.clone();
    assert!(blocked.len() > 4 && blocked[0] == "True" && blocked[1..].iter().all(|blocked| blocked == "False"), "{blocked:?}");
}

/// A request that was sent before the deletion ended may store something after everything was removed.
#[tokio::test]
async fn it_is_complete_when_nothing_is_found_a_day_later() {
    let world = World::new().await;
    let before = world.objects().await;
    let wait = world.reconciler.run(&world.erasure()).await.unwrap();
    assert_eq!((wait.as_secs() + 30) / 3600, 24, "{wait:?}");
    let conditions = world.pass().await;
    let (complete, reason, message) = &conditions["Complete"];
    assert_eq!((complete.as_str(), reason.as_str(), conditions["Blocked"].0.as_str()), ("False", "Removed", "False"));
    assert!(message.contains("checked again at 20") && !message.contains("To do"), "{message}");
    assert_eq!((world.objects().await, world.erasure().status.unwrap().removed_objects), (0, i64::try_from(before).ok()));
    let late = crate::archive::chunk_key(UID, &"0".repeat(64));
    world.reconciler.store.put_once(&late, b"late".to_vec()).await.unwrap();
    world.a_day_passes();
    assert_eq!(world.pass().await["Complete"].1, "Removed", "something was found");
    assert_eq!(world.objects().await, 0);
    assert_eq!(world.pass().await["Complete"].1, "Erased");
}

/// S7: etcd was restored from a backup while the archive is erased.
#[tokio::test]
async fn a_computer_that_exists_again_ends_a_running_erasure() {
    let world = World::new().await;
    let before = world.objects().await;
    world.set(|c| c.restored_at = Some(3));
    assert_eq!(world.pass().await["Blocked"].1, "NotReleased");
    let left = world.objects().await;
    assert!(left < before && left > 0, "{left} of {before}");
}

#[tokio::test]
async fn only_names_become_parts_of_paths() {
    for (field, text) in [("namespace", "../team"), ("name", "box/status"), ("uid", "11111111-2222-3333-4444-55555555555/"), ("uid", "..")]
    {
        let world = World::new().await;
        world.set(|c| {
            c.record = Err(404);
            c.erasure.as_mut().unwrap()["spec"]["computer"][field] = json!(text);
        });
        assert_eq!(world.pass().await["Blocked"].1, "ErasureMismatch");
        let paths = world.cluster.lock().paths.clone();
        assert!(paths.iter().all(|path| path.contains("/archiveerasures/")), "{paths:?}");
    }
}

/// A UID that is none would hold nothing, and nobody would learn of it.
#[test]
fn the_schema_accepts_only_uids() {
    for (kind, path) in [
        (json!(ArchiveHold::crd()), "computerUID"),
        (json!(ArchiveHold::crd()), "namespaceUID"),
        (json!(ArchiveErasure::crd()), "computer/properties/uid"),
    ] {
        let schema = kind.pointer(&format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{path}")).unwrap();
        assert!(schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("[0-9a-fA-F]{12}")), "{path}: {schema}");
    }
}

/// Also while it is executed: what is not erased yet stays.
#[tokio::test]
async fn a_withdrawal_ends_a_running_erasure() {
    let world = World::new().await;
    let (cached, before) = (world.erasure(), world.objects().await);
    world.set(|c| c.withdrawn_at = Some(3));
    assert_eq!(world.reconciler.run(&cached).await, Some(AGAIN));
    let left = world.objects().await;
    assert!(left < before && left > 0, "{left} of {before}");
    assert_eq!(world.reconciler.run(&cached).await, None);
    assert_eq!(world.objects().await, left);
}

/// Each destruction is preceded by a read of the holds: no answer is used for the whole archive.
#[tokio::test]
async fn holds_are_read_before_each_part() {
    let world = World::new().await;
    let before = world.objects().await;
    world.pass().await;
    let asked = world.cluster.lock().asked;
    // One for the tombstone, one for the manifest, and one for at most eight objects.
    assert!(asked >= 2 + (before - 1).div_ceil(8), "{asked} questions for {before} objects");
}
