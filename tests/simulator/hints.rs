//! For each guard, the run that last broke a promise without it. To find another one: `-- teeth --without GUARD --stages moves,stale
//! --thin 7`.

use computer_operator::guards::Guard;

pub struct Tooth {
    pub guard: Guard,
    pub about: &'static str,
    /// The case, as JSON.
    pub hint: &'static str,
}

const fn tooth(guard: Guard, about: &'static str, hint: &'static str) -> Tooth {
    Tooth { guard, about, hint }
}

const MANAGED: &str = r#"{"life":"Managed","leaders":1,"seed":1}"#;

pub static TEETH: [Tooth; 38] = [
    tooth(
        Guard::DeletePrecondition,
        "Every delete names the UID that it is meant for",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":31,"side":"After","act":{"Do":"Impersonate"}}]}"#,
    ),
    tooth(
        Guard::FinalizerFence,
        "A patch of a Computer's finalizers tests its UID and its resourceVersion",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":100,"side":"Before","act":{"Do":"Replace"}}]}"#,
    ),
    tooth(
        Guard::StatusFence,
        "A status is written only to the UID that it was computed for",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":49,"side":"Before","act":{"Do":"Replace"}}]}"#,
    ),
    tooth(
        Guard::RecordVersion,
        "A record is replaced only in the version that was read",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":69,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    tooth(
        Guard::LiveAbsence,
        "An object that is missing from a cache is read live",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"Replace"}},{"at":24,"side":"After","act":{"Cut":{"time":20000}}}]}"#,
    ),
    tooth(
        Guard::LiveRecord,
        "The record is read live before an object is created and before a volume is marked",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":81,"side":"Before","act":{"Slow":6000}}]}"#,
    ),
    tooth(
        Guard::OneLook,
        "A live read of the record is valid for the next request only",
        r#"{"life":"Retained","leaders":2,"seed":1,"lag":0,"faults":[{"at":129,"side":"Before","act":{"Slow":6000}}]}"#,
    ),
    tooth(
        Guard::LatestRecord,
        "A plan never uses a record older than one this process has already seen",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":64,"side":"After","act":{"Cut":{"time":15000}}}]}"#,
    ),
    tooth(
        Guard::TypedNotFound,
        "Only a 404 with the API server's reason NotFound proves absence",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":52,"side":"Before","act":{"Answer":404}}]}"#,
    ),
    tooth(
        Guard::RecordedUid,
        "Under a recorded name, only the object with the recorded UID is owned",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":40,"side":"After","act":{"Do":"Impersonate"}}]}"#,
    ),
    tooth(
        Guard::WritersStopped,
        "A pod has stopped when its kubelet has reported that every container terminated",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":37,"side":"After","act":{"Do":"ForcePods"}}]}"#,
    ),
    tooth(
        Guard::VanishedPod,
        "A pod that disappeared without that report is waited for",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":36,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    tooth(
        Guard::ClaimGone,
        "The claim is gone before the archive pod reads the volume",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":26,"side":"After","act":{"Do":"Plant"}}]}"#,
    ),
    tooth(Guard::RetainFirst, "A bound volume is set to Retain before anything else happens to it", MANAGED),
    tooth(
        Guard::SecureFirst,
        "A volume that is bound but not recorded is set to Retain before its claim is deleted",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":17,"side":"Before","act":{"Crash":{"down":90000,"moves":["Delete"]}}}]}"#,
    ),
    tooth(Guard::LiveLast, "The key authenticates only once the home volume is set to Retain", MANAGED),
    tooth(Guard::RevokeFirst, "The key is revoked before anything is archived", MANAGED),
    tooth(Guard::SecretGone, "The key's Secret is gone before the finalizer is removed", MANAGED),
    tooth(Guard::DyingComputer, "The key of a Computer that is being deleted does not authenticate", MANAGED),
    tooth(
        Guard::DyingNamespace,
        "A key in a namespace that is being deleted does not authenticate",
        r#"{"life":"Namespace","leaders":1,"seed":1}"#,
    ),
    tooth(
        Guard::ReadBack,
        "An archive is read back completely before anything is destroyed",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":50,"side":"After","act":{"Do":"LoseObject"}}]}"#,
    ),
    tooth(
        Guard::CreateOnly,
        "An object in the store is never overwritten",
        r#"{"life":"Unarchived","leaders":1,"seed":1,"faults":[{"at":49,"side":"After","act":{"Crash":{"down":90000,"moves":[]}}}]}"#,
    ),
    tooth(Guard::ObjectDigest, "Bytes whose digest does not match their name never become visible in the store", MANAGED),
    tooth(Guard::IngestUid, "An archive pod can write to the archive of its own computer only", MANAGED),
    tooth(
        Guard::OwnArchive,
        "An archive counts for the deletion that made it, not for a later one of the same UID",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":40,"side":"After","act":{"Do":"OldArchive"}}]}"#,
    ),
    tooth(
        Guard::CountedWait,
        "BestEffort counts only time in which a running operator saw no work on the archive",
        r#"{"life":"BestEffort","leaders":1,"seed":1,"faults":[{"at":70,"side":"Before","act":{"Crash":{"down":1500000,"moves":[]}}}]}"#,
    ),
    tooth(Guard::OverrideTarget, "An override applies only to the computer that it names", MANAGED),
    tooth(Guard::CustodyGone, "The archive pod and the custody claim are gone before the finalizer is removed", MANAGED),
    tooth(
        Guard::VolumeGone,
        "A volume that is to be deleted is gone before the finalizer is removed",
        r#"{"life":"Unarchived","leaders":1,"seed":1,"faults":[{"at":9,"side":"Before","act":{"Crash":{"down":500,"moves":[]}}}]}"#,
    ),
    tooth(Guard::ReceiptFirst, "The receipt is stored before the finalizer is removed", MANAGED),
    tooth(
        Guard::QuietCheck,
        "An archive check is not reported as progress",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":68,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    tooth(
        Guard::StillRetained,
        "A volume is still Retain when its claim is deleted",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"ResetPolicy"}}]}"#,
    ),
    tooth(
        Guard::Reserved,
        "The volume is reserved for the archive as soon as its claim is gone",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":33,"side":"After","act":{"Do":"VanishOnLostNode"}},{"at":47,"side":"After","act":{"Do":"ResetPolicy"}}]}"#,
    ),
    tooth(
        Guard::SeenVersion,
        "A computer whose time to live has expired is deleted only in the version that was read",
        r#"{"life":"Expiring","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Hold":{"events":50}}},{"at":24,"side":"After","act":{"Do":"Prolong"}}]}"#,
    ),
    tooth(
        Guard::StepBeginning,
        "The deadline of a step counts from the start of that step",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":60,"side":"After","act":{"Do":"StoreOut"}}]}"#,
    ),
    tooth(
        Guard::Tombstone,
        "A revoked credential stays revoked",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":20,"side":"After","act":{"Do":"DeleteOverHttp"}}]}"#,
    ),
    tooth(
        Guard::QuietBackoff,
        "The status write of a failed reconcile does not shorten its backoff",
        r#"{"life":"Unarchived","leaders":1,"seed":1,"faults":[{"at":45,"side":"After","act":{"Deny":{"part":"/persistentvolumes","code":500,"time":300000}}}]}"#,
    ),
    tooth(
        Guard::UndoneWrite,
        "A write that succeeds and changes nothing counts as a failure",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":15,"side":"After","act":{"Do":"UndoWrites"}}]}"#,
    ),
];
