//! Where each guard bites: the run that broke a promise without it when it was last looked for. Found by `-- teeth --without GUARD
//! --stages moves,stale --thin 7`.

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
        "A patch of a Computer's finalizers tests its UID and its version",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":100,"side":"Before","act":{"Do":"Replace"}}]}"#,
    ),
    tooth(
        Guard::StatusFence,
        "A status goes only to the UID that it was computed for",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":49,"side":"Before","act":{"Do":"Replace"}}]}"#,
    ),
    tooth(
        Guard::RecordVersion,
        "A record is only replaced in the version that was read",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":69,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    tooth(
        Guard::LiveAbsence,
        "What a cache does not hold is looked for live",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"Replace"}},{"at":24,"side":"After","act":{"Cut":{"time":20000}}}]}"#,
    ),
    tooth(
        Guard::LiveRecord,
        "Nothing is made on the word of a record that a cache holds",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":28,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    tooth(
        Guard::OneLook,
        "A look at the record is good for the very next request only",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":32,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    tooth(
        Guard::LatestRecord,
        "A plan is not made on an older record than this process has seen",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":64,"side":"After","act":{"Cut":{"time":15000}}}]}"#,
    ),
    tooth(
        Guard::TypedNotFound,
        "Only the API server's own word is an absence, not any 404",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":52,"side":"Before","act":{"Answer":404}}]}"#,
    ),
    tooth(
        Guard::RecordedUid,
        "Under a recorded name only the recorded UID is ours",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":40,"side":"After","act":{"Do":"Impersonate"}}]}"#,
    ),
    tooth(
        Guard::WritersStopped,
        "A pod has stopped when its kubelet says so",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":37,"side":"After","act":{"Do":"ForcePods"}}]}"#,
    ),
    tooth(
        Guard::VanishedPod,
        "A pod that vanished without that word is waited for",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":36,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    tooth(
        Guard::ClaimGone,
        "The claim is gone before the archive reads",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":26,"side":"After","act":{"Do":"Plant"}}]}"#,
    ),
    tooth(Guard::RetainFirst, "A bound volume is set to Retain before anything else happens to it", MANAGED),
    tooth(
        Guard::SecureFirst,
        "A volume that is bound but not on record is secured before its claim goes",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":17,"side":"Before","act":{"Crash":{"down":90000,"moves":["Delete"]}}}]}"#,
    ),
    tooth(Guard::LiveLast, "The key goes live only when the home is protected", MANAGED),
    tooth(Guard::RevokeFirst, "The key is revoked before anything is archived", MANAGED),
    tooth(Guard::SecretGone, "The key's Secret is gone before the release", MANAGED),
    tooth(Guard::DyingComputer, "A Computer that is being deleted authenticates nobody", MANAGED),
    tooth(Guard::DyingNamespace, "Neither does a namespace that is being deleted", r#"{"life":"Namespace","leaders":1,"seed":1}"#),
    tooth(
        Guard::ReadBack,
        "An archive is read back, whole, before anything is destroyed",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":50,"side":"After","act":{"Do":"LoseObject"}}]}"#,
    ),
    tooth(
        Guard::CreateOnly,
        "What is in the store is never overwritten",
        r#"{"life":"Unarchived","leaders":1,"seed":1,"faults":[{"at":58,"side":"Before","act":{"Crash":{"down":5000,"moves":[]}}}]}"#,
    ),
    tooth(Guard::ObjectDigest, "Bytes that do not have the digest of their name never become visible", MANAGED),
    tooth(Guard::IngestUid, "An archive pod writes for its own computer only", MANAGED),
    tooth(
        Guard::OwnArchive,
        "An archive counts for the deletion that made it",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":40,"side":"After","act":{"Do":"OldArchive"}}]}"#,
    ),
    tooth(
        Guard::CountedWait,
        "BestEffort counts the time in which a running operator saw that nothing worked on the archive",
        r#"{"life":"BestEffort","leaders":1,"seed":1,"faults":[{"at":70,"side":"Before","act":{"Crash":{"down":1500000,"moves":[]}}}]}"#,
    ),
    tooth(Guard::OverrideTarget, "An override counts for the computer that it names", MANAGED),
    tooth(Guard::CustodyGone, "The archive pod and the custody claim are gone before the release", MANAGED),
    tooth(Guard::VolumeGone, "A volume that is to go is gone before the release", r#"{"life":"Unarchived","leaders":1,"seed":1}"#),
    tooth(Guard::ReceiptFirst, "The receipt is stored before the release", MANAGED),
    tooth(
        Guard::NoWayBack,
        "A deletion that has begun goes on, whatever a cache shows",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":24,"side":"After","act":{"Cut":{"time":40000}}}]}"#,
    ),
    tooth(
        Guard::QuietCheck,
        "A look at the archive is not told as a step that goes on",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":68,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    tooth(
        Guard::StillRetained,
        "A volume is still Retain when its claim is deleted",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"ResetPolicy"}}]}"#,
    ),
    tooth(
        Guard::SeenVersion,
        "A computer that lives is deleted only in the version that was seen",
        r#"{"life":"Expiring","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Hold":{"events":50}}},{"at":24,"side":"After","act":{"Do":"Prolong"}}]}"#,
    ),
    tooth(
        Guard::StepBeginning,
        "The deadline of a step counts from its own beginning",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":60,"side":"After","act":{"Do":"StoreOut"}}]}"#,
    ),
    tooth(
        Guard::Tombstone,
        "A revoked credential stays revoked",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":20,"side":"After","act":{"Do":"DeleteOverHttp"}}]}"#,
    ),
    tooth(
        Guard::QuietBackoff,
        "A status that a failed pass wrote does not end its pause",
        r#"{"life":"Unarchived","leaders":1,"seed":1,"faults":[{"at":45,"side":"After","act":{"Deny":{"part":"/persistentvolumes","code":500,"time":300000}}}]}"#,
    ),
    tooth(
        Guard::UndoneWrite,
        "A write that succeeds and changes nothing counts as a failure",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":15,"side":"After","act":{"Do":"UndoWrites"}}]}"#,
    ),
];
