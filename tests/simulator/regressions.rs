//! Runs that once broke a promise, by name. They run with every matrix.

/// The former fault, and the case that showed it.
pub const ALL: [(&str, &str); 31] = [
    (
        "a store that fails at once was retried and reported without a pause, seven times per second",
        r#"{"life":"Override","leaders":1,"seed":1}"#,
    ),
    (
        "a stale cache of records re-created the custody claim repeatedly after the archive was finished",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":53,"side":"After","act":{"Cut":{"time":15000}}}]}"#,
    ),
    (
        "the last of those claims remained after the release",
        r#"{"life":"Retained","leaders":1,"seed":1,"faults":[{"at":64,"side":"After","act":{"Cut":{"time":50}}}]}"#,
    ),
    (
        "a second leader re-created a pod that a tenant had just force-deleted, under a name whose UID was in the record: it was never deleted",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":36,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the same while the operators are down",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":36,"side":"Before","act":{"Crash":{"down":90000,"moves":["StripAndForce"]}}}]}"#,
    ),
    (
        "two leaders: one counted a second archive attempt because its read was older than the record; the first pod blocked the deletion",
        r#"{"life":"Namespace","leaders":2,"seed":1}"#,
    ),
    (
        "a computer of the same name that comes after the release of the first one",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":109,"side":"Before","act":{"Do":"Recreate"}}]}"#,
    ),
    (
        "an archive pod that could not start was reported, checked and reported again without a pause: 25 requests per second",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":63,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    (
        "the same with two leaders: 81,346 requests",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":108,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    (
        "a home was bound to a re-created claim before the claim was in the record: a deletion at that moment never ended",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":24,"side":"After","act":{"Do":"DeleteClaims"}},{"at":24,"side":"After","act":{"Do":"ForcePods"}},{"at":41,"side":"After","act":{"Crash":{"down":90000,"moves":["Delete"]}}}]}"#,
    ),
    (
        "a second leader re-created a pod because of a read that was five requests old; the record named another UID by then",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":30,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the same with an archive pod: the pod of an earlier attempt blocked the custody claim permanently",
        r#"{"life":"Managed","leaders":2,"seed":1,"faults":[{"at":111,"side":"After","act":{"Do":"WreckCustody"}}]}"#,
    ),
    (
        "a custody claim re-created by a leader whose create conflicted with the other leader's claim, which was deleted before it could be read",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":95,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    (
        "a create that was in flight for 600 ms succeeded at the moment of the release: accepted, if the object is deleted afterwards",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":92,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    (
        "an override was acknowledged in every reconcile while a cache was stale",
        r#"{"life":"Override","leaders":2,"seed":1,"faults":[{"at":102,"side":"After","act":{"Cut":{"time":40000}}}]}"#,
    ),
    (
        "a volume set to `Retain`, whose claim a tenant deleted before it was in the record, never had an owner again",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":21,"side":"Before","act":{"Crash":{"down":90000,"moves":["Impersonate"]}}}]}"#,
    ),
    (
        "a leader with a stale record marked a volume that the other leader had archived and released",
        r#"{"life":"Retained","leaders":2,"seed":1,"faults":[{"at":81,"side":"Before","act":{"Slow":6000}}]}"#,
    ),
    (
        "a time to live ended while the cache of Computers was stale: the operator deleted the Computer in every reconcile",
        r#"{"life":"Expiring","leaders":1,"seed":1,"faults":[{"at":11,"side":"After","act":{"Cut":{"time":40000}}}]}"#,
    ),
    (
        "a tenant's pod held the claim, the volume's policy was reset meanwhile, and the end of the claim destroyed the home",
        r#"{"life":"Managed","leaders":1,"seed":1,"lag":0,"faults":[{"at":27,"side":"After","act":{"Do":"Plant"}},{"at":45,"side":"After","act":{"Do":"ResetPolicy"}}]}"#,
    ),
    (
        "an archive was read as soon as a lost node was back, while its kubelet had just begun to kill the machine",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":28,"side":"Before","act":{"Do":"StripAndForce"}},{"at":28,"side":"After","act":{"Do":"LoseNode"}}]}"#,
    ),
    (
        "a lasting 409 on the record was retried without a pause, 955 requests in 10 s, and never reported",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":24,"side":"Before","act":{"Deny":{"part":"PUT ","code":409,"time":300000}}}]}"#,
    ),
    (
        "the same in a deletion",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":32,"side":"Before","act":{"Deny":{"part":"PUT ","code":409,"time":300000}}}]}"#,
    ),
    (
        "55 claims in 8 s for a Computer that was gone, which a stale cache still showed",
        r#"{"life":"Managed","leaders":1,"seed":1,"faults":[{"at":20,"side":"Before","act":{"Cut":{"time":40000}}},{"at":25,"side":"Before","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "a quota that refused every pod kept a rotated key from being issued",
        r#"{"life":"LostKey","leaders":1,"seed":1,"faults":[{"at":23,"side":"After","act":{"Do":"ForcePods"}},{"at":23,"side":"After","act":{"Deny":{"part":"POST /api/v1/namespaces/team/pods","code":403,"time":3000000}}}]}"#,
    ),
    (
        "two leaders ended each other's backoff with each record of a key whose Secret was refused: 502 requests in 29 s",
        r#"{"life":"Managed","leaders":2,"seed":1,"lag":0,"faults":[{"at":22,"side":"After","act":{"Deny":{"part":"POST ","code":403,"time":120000}}},{"at":27,"side":"After","act":{"Slow":6000}},{"at":27,"side":"Before","act":{"Slow":600}}]}"#,
    ),
    (
        "a node was lost, the home's claim was gone, and a policy that was set back meanwhile destroyed the home without an archive",
        r#"{"life":"Managed","leaders":1,"seed":1,"lag":0,"faults":[{"at":33,"side":"After","act":{"Do":"VanishOnLostNode"}},{"at":47,"side":"After","act":{"Do":"ResetPolicy"}}]}"#,
    ),
    (
        "a second leader's pod was left: its create was in flight while a tenant force-deleted the first leader's pod of that name",
        r#"{"life":"Unarchived","leaders":2,"seed":1,"lag":0,"faults":[{"at":28,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the same with a lost node",
        r#"{"life":"Unarchived","leaders":2,"seed":1,"lag":0,"faults":[{"at":28,"side":"After","act":{"Do":"VanishOnLostNode"}}]}"#,
    ),
    (
        "the same with an archive",
        r#"{"life":"Managed","leaders":2,"seed":6,"lag":0,"faults":[{"at":29,"side":"After","act":{"Do":"StripAndForce"}}]}"#,
    ),
    (
        "the answer to the record of a pod was lost: the pod counted as another leader's, and the machine was deleted",
        r#"{"life":"Managed","leaders":1,"seed":1,"lag":0,"faults":[{"at":16,"side":"After","act":"Silence"}]}"#,
    ),
    (
        "the marks of a volume were removed as soon as they were set, before the cache showed them: it was not protected again",
        r#"{"life":"Expiring","leaders":1,"seed":1,"lag":0,"faults":[{"at":20,"side":"After","act":{"Do":"StripVolumes"}}]}"#,
    ),
];
