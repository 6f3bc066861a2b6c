//! Fixed scenarios and random ones.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::world::World;
use crate::apikey::plan::{Next, Plan};
use crate::apikey::view::{Action, View};
use crate::resources::{ApiKey, CredentialState};

fn rotate(to: &str) -> impl FnOnce(&mut ApiKey) {
    let to = to.to_owned();
    move |key| key.spec.rotation = Some(to)
}

fn reason(plan: &Plan) -> &'static str {
    plan.ready.as_ref().map_or("", |r| r.reason.as_str())
}

#[test]
fn a_token_is_issued_with_five_writes_and_then_nothing_is_written() {
    let mut world = World::new();
    let plan = world.pass();
    assert!(plan.ready.unwrap().status && plan.secret_name.is_some());
    // Finalizer, record, Secret, record; the fifth write is the status.
    assert_eq!((world.writes, world.ours().len()), (4, 1));
    assert_eq!(world.authenticates(), world.ours()[0].hash);
    for _ in 0..3 {
        assert_eq!(reason(&world.pass()), "Issued");
        world.later(900);
    }
    assert_eq!(world.writes, 4, "L6");
}

#[test]
fn a_rotation_revokes_the_old_token_at_once_and_leaves_one_secret() {
    let mut world = World::new();
    world.pass();
    let old = world.authenticates();
    world.change(rotate("2"));
    assert_eq!(world.authenticates(), None);
    assert_eq!(reason(&world.pass()), "Issued");
    assert!(world.authenticates().is_some() && world.authenticates() != old && world.ours().len() == 1);
}

#[test]
fn an_expired_token_stays_invalid_until_a_rotation() {
    let mut world = World::new();
    let at = world.now + SignedDuration::from_secs(60);
    world.change(|key| key.spec.expires_at = Some(Time(at)));
    let Next::Wait(after) = world.pass().next else { panic!("the plan must wait for the expiry") };
    assert!((60..62).contains(&after.as_secs()));
    world.later(60);
    assert_eq!(world.authenticates(), None);
    assert_eq!((reason(&world.pass()), world.ours().len()), ("Expired", 0));
    world.change(|key| key.spec.expires_at = None);
    assert_eq!((reason(&world.pass()), world.authenticates()), ("Expired", None));
    world.change(rotate("2"));
    assert_eq!(reason(&world.pass()), "Issued");
}

#[test]
fn an_expiry_can_be_extended_only_before_it_has_passed() {
    let mut world = World::new();
    let at = |world: &World, s| Some(Time(world.now + SignedDuration::from_secs(s)));
    let (first, second) = (at(&world, 60), at(&world, 200));
    world.change(|key| key.spec.expires_at = first);
    world.pass();
    let token = world.authenticates();
    world.change(|key| key.spec.expires_at = second);
    world.pass();
    world.later(100);
    assert_eq!((world.authenticates(), reason(&world.pass())), (token, "Issued"));
    let third = at(&world, 500);
    world.later(150);
    world.change(|key| key.spec.expires_at = third);
    assert_eq!((world.authenticates(), reason(&world.pass())), (None, "Expired"));
}

#[test]
fn a_recreated_service_account_does_not_revive_a_token() {
    let mut world = World::new();
    world.account = None;
    assert_eq!((reason(&world.pass()), world.writes), ("ServiceAccountNotFound", 1), "only the finalizer is written");
    world.account = Some("one".into());
    assert_eq!(reason(&world.pass()), "Issued");
    world.account = Some("two".into());
    assert_eq!(world.authenticates(), None);
    assert_eq!((reason(&world.pass()), world.ours().len()), ("ServiceAccountReplaced", 0));
    world.account = Some("one".into());
    assert_eq!((reason(&world.pass()), world.authenticates()), ("ServiceAccountReplaced", None));
    world.account = Some("two".into());
    world.change(rotate("2"));
    assert_eq!(reason(&world.pass()), "Issued");
    world.account = None;
    assert_eq!(reason(&world.pass()), "ServiceAccountDeleted");
}

#[test]
fn a_deleted_secret_is_reported_with_a_remedy() {
    let mut world = World::new();
    world.pass();
    world.delete_secrets_by_hand();
    let writes = world.writes;
    let plan = world.pass();
    assert_eq!(reason(&plan), "SecretMissing");
    assert!(plan.ready.unwrap().message.contains("change spec.rotation") && plan.secret_name.is_none());
    world.plant();
    assert_eq!((reason(&world.pass()), world.writes), ("SecretMissing", writes));
    world.delete();
    world.settle();
    assert!(world.key.is_none() && world.record.is_none() && world.secrets.len() == 1, "the tenant's own Secret is kept");
}

#[test]
fn a_deletion_leaves_nothing_and_names_a_blocked_secret() {
    let mut world = World::new();
    world.pass();
    world.hold(true);
    world.delete();
    assert_eq!(world.authenticates(), None);
    let plan = world.settle();
    assert_eq!(reason(&plan), "SecretHeld");
    assert!(world.key.is_some() && world.record.as_ref().unwrap().spec.token.state == CredentialState::Revoked);
    world.hold(false);
    assert_eq!(world.settle().next, Next::Finished);
    assert!(world.key.is_none() && world.record.is_none() && world.secrets.is_empty());
}

#[test]
fn blocked_secrets_of_many_rotations_are_bounded() {
    let mut world = World::new();
    for i in 0..20 {
        world.change(rotate(&i.to_string()));
        world.pass();
        world.hold(true);
    }
    assert_eq!((reason(&world.pass()), world.authenticates()), ("SecretHeld", None));
    assert!(world.record.as_ref().unwrap().spec.retired.len() <= 9);
    world.hold(false);
    assert_eq!(reason(&world.settle()), "Issued");
    assert_eq!(world.ours().len(), 1);
}

#[test]
fn a_terminating_namespace_counts_only_if_it_is_read_live() {
    let mut world = World::new();
    world.pass();
    let mut old = world.clone();
    old.terminating = true;
    let mut view = world.begin(&old);
    while world.step(&mut view).is_ok() {}
    assert!(world.authenticates().is_some(), "the cached namespace is an earlier one of the same name");
    world.terminating = true;
    assert_eq!(world.authenticates(), None);
    assert_eq!((reason(&world.pass()), world.ours().len()), ("NamespaceTerminating", 0));
    world.delete();
    world.pass();
    assert!(world.key.is_none() && world.record.is_none());
}

#[test]
fn neither_a_removed_finalizer_nor_a_lost_record_leaves_a_valid_token() {
    let mut world = World::new();
    world.pass();
    world.change(|key| key.metadata.finalizers = None);
    world.delete();
    assert!(world.key.is_none());
    assert_eq!((world.settle().next, world.ours().len()), (Next::Finished, 0));
    let mut world = World::new();
    world.pass();
    world.record = None;
    world.delete();
    assert_eq!(world.settle().next, Next::Finished);
    assert!(world.key.is_none(), "without a record no token authenticates, and the deletion finishes");
}

/// A leader recorded a token, and its request to create the Secret took effect after another leader had issued another token. That Secret was
/// no longer on record.
#[test]
fn a_secret_that_is_created_late_is_deleted() {
    for crashes in [1, 2, 7] {
        let mut world = World::new();
        let mut late = Vec::new();
        for _ in 0..crashes {
            let mut view = world.begin(&world.clone());
            // The process ends after it has sent the request, which takes effect later.
            loop {
                match crate::apikey::plan::plan(&view).next {
                    Next::Do(action) if matches!(*action, Action::CreateSecret(_)) => {
                        late.push((*action, view));
                        break;
                    }
                    _ => world.step(&mut view).expect("a token is issued"),
                }
            }
            world.later(30);
        }
        assert_eq!(reason(&world.pass()), "Issued");
        assert!(world.record.as_ref().unwrap().spec.retired.len() <= 4, "a record has a bound");
        let writes = world.writes;
        world.later(900);
        world.pass();
        assert_eq!(world.writes, writes, "L6");
        let (action, view) = late.pop().unwrap();
        world.apply(action, &view);
        assert_eq!(world.ours().len(), 2);
        world.later(900);
        assert_eq!((reason(&world.pass()), world.ours().len()), ("Issued", 1), "S6: the Secret of a lost token is left");
        world.delete();
        world.settle();
        assert!(world.key.is_none() && world.record.is_none() && world.ours().is_empty());
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Step(usize),
    /// The pass ends where it is, and the next one starts with the last contents of the caches.
    Crash(usize),
    UpdateCache,
    Later(i64),
    Rotate,
    Extend,
    Delete,
    Strip,
    DeleteSecrets,
    Plant,
    Hold(bool),
    Account(bool),
    Terminate,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => (0_usize..2).prop_map(Op::Step),
        4 => (0_usize..2).prop_map(Op::Crash),
        6 => Just(Op::UpdateCache),
        3 => (1_i64..40).prop_map(Op::Later),
        2 => Just(Op::Rotate),
        1 => Just(Op::Extend),
        1 => Just(Op::Delete),
        1 => Just(Op::Strip),
        1 => Just(Op::DeleteSecrets),
        1 => Just(Op::Plant),
        2 => any::<bool>().prop_map(Op::Hold),
        2 => any::<bool>().prop_map(Op::Account),
        1 => prop_oneof![9 => Just(Op::UpdateCache), 1 => Just(Op::Terminate)],
    ]
}

/// Two concurrent leaders with stale caches.
struct Scene {
    world: World,
    cache: World,
    passes: [Option<View>; 2],
    rotations: u32,
}

impl Scene {
    fn play(&mut self, op: Op) {
        let world = &mut self.world;
        match op {
            Op::Step(leader) => {
                let mut view = self.passes[leader].take().unwrap_or_else(|| world.begin(&self.cache));
                if world.step(&mut view).is_ok() {
                    self.passes[leader] = Some(view);
                }
            }
            Op::Crash(leader) => self.passes[leader] = None,
            Op::UpdateCache => self.cache = world.clone(),
            Op::Later(seconds) => world.later(seconds),
            Op::Rotate => {
                self.rotations += 1;
                world.change(rotate(&self.rotations.to_string()));
            }
            Op::Extend => {
                let at = Time(world.now + SignedDuration::from_secs(60));
                // An expired one is not extended: the token would stay invalid.
                let now = world.now;
                world.change(|key| {
                    if key.spec.expires_at.as_ref().is_none_or(|t| t.0 > now) {
                        key.spec.expires_at = Some(at);
                    }
                });
            }
            Op::Delete => world.delete(),
            Op::Strip => world.change(|key| key.metadata.finalizers = None),
            Op::DeleteSecrets => world.delete_secrets_by_hand(),
            Op::Plant => world.plant(),
            Op::Hold(held) => world.hold(held),
            Op::Account(false) => world.account = None,
            Op::Account(true) => {
                let uid = world.next();
                world.account.get_or_insert(uid);
            }
            Op::Terminate => world.terminating = true,
        }
        if let Some(key) = &self.world.key
            && key.metadata.deletion_timestamp.is_some()
            && key.metadata.finalizers.is_none()
        {
            self.world.key = None;
        }
        self.world.promises();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_revoked_token_never_authenticates_again_and_every_key_settles(ops in proptest::collection::vec(op(), 0..120)) {
        let world = World::new();
        let mut scene = Scene { cache: world.clone(), world, passes: [None, None], rotations: 0 };
        for op in ops {
            scene.play(op);
        }
        let mut world = scene.world;
        // The user repairs the key.
        world.hold(false);
        if world.key.as_ref().is_some_and(|k| k.metadata.deletion_timestamp.is_none()) && !world.terminating {
            world.account.get_or_insert_with(|| "last".into());
            world.change(|key| { key.spec.expires_at = None; key.spec.rotation = Some("last".into()); });
            prop_assert_eq!(reason(&world.settle()), "Issued");
            let valid = world.authenticates();
            prop_assert!(valid.is_some() && world.ours().iter().any(|s| s.hash == valid));
            let writes = world.writes;
            world.later(2000);
            world.pass();
            prop_assert_eq!(world.writes, writes, "L6");
            world.delete();
        }
        world.delete();
        world.settle();
        prop_assert!(world.key.is_none() && world.record.is_none(), "{:?}", world.record);
    }
}
