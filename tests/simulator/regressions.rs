//! Runs that once broke a promise, by name. Each is run with every matrix.

/// What was found, and the case that showed it.
pub const ALL: [(&str, &str); 16] = [
    (
        "a store that fails at once was asked, reported and asked again without a pause, seven times a second",
        r#"{"life":"Override","leaders":1,"seed":1}"#,
    ),
    (
        "a record's cache that lagged made the custody claim again and again after the archive was finished",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":53,"side":"After","act":{"Cut":{"time":15000}}}]}"#,
    ),
    (
        "the last of those claims was left behind after the release",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":73,"side":"After","act":{"Cut":{"time":50}}}]}"#,
    ),
    (
        "a second leader made the pod again that a tenant had just killed, under a name whose UID was on record: it was never deleted",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":36,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the same while the operators are down",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":36,"side":"Before","act":{"Crash":{"down":90000,"moves":["StripAndForce"]}}}]}"#,
    ),
    (
        "two leaders: one counted a second archive attempt because its own look was older than the record; the first pod held all up",
        r#"{"life":"Namespace","leaders":2,"seed":1}"#,
    ),
    (
        "a computer of the same name that comes after the release of the first one",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":109,"side":"Before","act":{"Do":"Recreate"}}]}"#,
    ),
    (
        "an archive pod that could not start was reported, checked and reported again without a pause: 25 requests a second for ever",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":68,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    (
        "the same with two leaders: 81,346 requests",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":119,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    (
        "a home whose claim was made again was pointed at it before the claim was on record: a deletion right then waited for ever",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"DeleteClaims"}},{"at":24,"side":"After","act":{"Do":"ForcePods"}},{"at":41,"side":"After","act":{"Crash":{"down":90000,"moves":["Delete"]}}}]}"#,
    ),
    (
        "a second leader made a pod again on the word of a look that five requests had come after; the record named another UID by then",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":33,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the same with an archive pod: that of an earlier attempt held the custody claim for good",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":111,"side":"After","act":{"Do":"WreckCustody"}}]}"#,
    ),
    (
        "a custody claim made again by a leader whose create had met the other one's, which was taken away before it could be read",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":95,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    (
        "a create that was on its way for 600 ms came true in the moment of the release: excused, as long as it is taken away",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":92,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    (
        "an override was acknowledged again in every pass as long as a cache was behind",
        r#"{"life":"Override","leaders":2,"seed":1,"faults":[{"at":116,"side":"After","act":{"Cut":{"time":40000}}}]}"#,
    ),
    (
        "a volume set to `Retain`, whose claim a tenant deleted before it was on record, was nobody's for ever",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":21,"side":"Before","act":{"Crash":{"down":90000,"moves":["Impersonate"]}}}]}"#,
    ),
];
