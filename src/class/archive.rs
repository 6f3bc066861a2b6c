//! Whether computers of a class could be archived. Their archive pods run in the operator's namespace as the user of the machine. A class
//! whose archive pods are refused there gives computers that work, and that can never be deleted (L1): the class is refused instead.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;

use crate::archive::waiting_time::Waited;
use crate::computer::deletion::custody;
use crate::computer::machine_pod;
use crate::computer::view::{ClassState, View};
use crate::resources::{ComputerClass, ComputerRecordSpec, ComputerSpec, Snapshot};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

/// UID of no computer.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// What deletion would know of a computer of this class.
pub(super) fn snapshot(class: &ComputerClass, machine: &Pod) -> Snapshot {
    machine_pod::snapshot(class, &ComputerSpec::default(), machine)
}

/// The archive pod of such a computer, without a name.
pub(super) fn archive_pod(settings: &Settings, snapshot: Snapshot) -> Pod {
    let view = nobody(settings);
    let record = crate::computer::new_record::new(&view, ComputerRecordSpec { snapshot, ..ComputerRecordSpec::default() });
    let mut pod = custody::archive_pod(&view, &record, "");
    pod.metadata.name = None;
    pod
}

fn nobody(settings: &Settings) -> View {
    View {
        uid: NOBODY.to_owned(),
        namespace: String::new(),
        name: String::new(),
        computer: None,
        namespace_terminating: false,
        record: None,
        class: ClassState::Missing,
        overrides: Vec::new(),
        facts: BTreeMap::new(),
        learned: BTreeSet::new(),
        waited: Waited::default(),
        archive: None,
        receipt: None,
        finalizer_confirmed: false,
        passed: Vec::new(),
        times: Vec::new(),
        settings: settings.clone(),
        fresh: Fresh { suffix: String::new(), key: [0; 32] },
        now: jiff::Timestamp::UNIX_EPOCH,
    }
}
