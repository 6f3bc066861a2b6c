//! What can be known about one computer with the caller's rights: the Computer, its record, its class, events. It only reads; what it means
//! is decided elsewhere, from [`Observed`] alone.

use anyhow::Result;
use computer_operator_api::{Computer, ComputerClass, ComputerRecord, GROUP};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use kube::api::ListParams;

use crate::cluster::{Answer, Cluster, USUAL_NAMESPACE};

/// A computer as this caller sees it at one moment.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Now.
    pub now: Timestamp,
    /// Name or UID, as the user asked for it.
    pub asked: String,
    /// The namespace in which the name was looked for.
    pub namespace: String,
    /// The Computer.
    pub computer: Answer<Computer>,
    /// Its record.
    pub record: Answer<ComputerRecord>,
    /// Its class.
    pub class: Answer<ComputerClass>,
    /// Events about the Computer, the oldest first.
    pub events: Vec<Event>,
    /// Events about the record, the oldest first.
    pub record_events: Vec<Event>,
    /// Whether the caller may create a `DeletionOverride`; asked only while something is blocked.
    pub may_override: Option<bool>,
    /// The namespace of the operator: of the record, or as far as it is known.
    pub operator_namespace: String,
}

/// Whether this is a UID. No user would name a computer so, and the answer is the same if one does.
pub fn is_uid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

impl Cluster {
    /// Reads everything about a computer that the caller may read.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn observe(&self, asked: &str) -> Result<Observed> {
        let computer = if is_uid(asked) { self.computer_of(asked).await? } else { self.get(Some(&self.namespace), asked).await? };
        let record = self.record_for(asked, &computer).await?;
        let found = computer.as_found();
        let class_name = found.and_then(|c| c.status.as_ref()?.class_name.clone().or_else(|| c.spec.class_name.clone()));
        let class = match class_name {
            Some(name) => self.get(None, &name).await?,
            None => Answer::Absent,
        };
        let events = match found.map(|c| (c.namespace(), c.uid())) {
            Some((Some(namespace), Some(uid))) => self.events(&namespace, &uid).await?,
            _ => Vec::new(),
        };
        let record_events = match record.as_found().map(|r| (r.namespace(), r.uid())) {
            Some((Some(namespace), Some(uid))) if found.is_none() => self.events(&namespace, &uid).await?,
            _ => Vec::new(),
        };
        let place = record.as_found().and_then(kube::ResourceExt::namespace).or_else(|| self.global.operator_namespace.clone());
        Ok(Observed {
            now: Timestamp::now(),
            asked: asked.to_owned(),
            namespace: self.namespace.clone(),
            computer,
            record,
            class,
            events,
            record_events,
            may_override: Some(self.may("create", GROUP, "deletionoverrides", None).await?),
            operator_namespace: place.unwrap_or_else(|| USUAL_NAMESPACE.to_owned()),
        })
    }

    /// The Computer with a UID: in its namespace, else anywhere.
    async fn computer_of(&self, uid: &str) -> Result<Answer<Computer>> {
        let everywhere = self.list::<Computer>(None, ListParams::default()).await?;
        let all = match everywhere {
            Answer::Denied(_) => self.list::<Computer>(Some(&self.namespace), ListParams::default()).await?,
            other => other,
        };
        Ok(match all {
            Answer::Found(list) => list.into_iter().find(|c| c.uid().as_deref() == Some(uid)).map_or(Answer::Absent, Answer::Found),
            Answer::Absent => Answer::Absent,
            Answer::Denied(right) => Answer::Denied(right),
        })
    }

    /// The record of a Computer, of a UID, or the newest one of a name.
    async fn record_for(&self, asked: &str, computer: &Answer<Computer>) -> Result<Answer<ComputerRecord>> {
        let uid = computer.as_found().and_then(kube::ResourceExt::uid).or_else(|| is_uid(asked).then(|| asked.to_owned()));
        match uid {
            Some(uid) => self.record(&uid).await,
            None => self.record_of_name(asked).await,
        }
    }

    /// The record with this UID.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn record(&self, uid: &str) -> Result<Answer<ComputerRecord>> {
        if let Some(namespace) = &self.global.operator_namespace {
            return self.get(Some(namespace), uid).await;
        }
        let named = ListParams::default().fields(&format!("metadata.name={uid}"));
        match self.list::<ComputerRecord>(None, named).await? {
            Answer::Found(list) => Ok(list.into_iter().next().map_or(Answer::Absent, Answer::Found)),
            _ => self.get(Some(USUAL_NAMESPACE), uid).await,
        }
    }

    /// The newest record of a computer of this name.
    async fn record_of_name(&self, name: &str) -> Result<Answer<ComputerRecord>> {
        let all = match &self.global.operator_namespace {
            Some(namespace) => self.list::<ComputerRecord>(Some(namespace), ListParams::default()).await?,
            None => match self.list::<ComputerRecord>(None, ListParams::default()).await? {
                Answer::Denied(_) => self.list::<ComputerRecord>(Some(USUAL_NAMESPACE), ListParams::default()).await?,
                other => other,
            },
        };
        Ok(match all {
            Answer::Found(list) => newest(list, &self.namespace, name).map_or(Answer::Absent, Answer::Found),
            Answer::Absent => Answer::Absent,
            Answer::Denied(right) => Answer::Denied(right),
        })
    }
}

fn newest(list: Vec<ComputerRecord>, namespace: &str, name: &str) -> Option<ComputerRecord> {
    let same = list.into_iter().filter(|r| r.spec.namespace == namespace && r.spec.computer == name);
    same.max_by_key(|record| record.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use computer_operator_api::ComputerRecordSpec;

    use super::*;

    #[test]
    fn a_uid_is_not_a_name() {
        assert!(is_uid("0b4f1c1e-6f0e-4a39-9a3b-111111111111"));
        assert!(!is_uid("box") && !is_uid("a-b-c-d-e") && !is_uid("0b4f1c1e-6f0e-4a39-9a3b-11111111111x"));
    }

    #[test]
    fn the_newest_of_several_deleted_computers_of_a_name_is_meant() {
        let record = |name: &str, namespace: &str, second: i64| {
            let mut record = ComputerRecord::new(&format!("{name}{second}"), ComputerRecordSpec::default());
            (record.spec.computer, record.spec.namespace) = (name.to_owned(), namespace.to_owned());
            let time = jiff::Timestamp::from_second(second).unwrap();
            record.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
            record
        };
        let all = vec![record("box", "a", 1), record("box", "a", 5), record("box", "b", 9), record("x", "a", 9)];
        assert_eq!(newest(all, "a", "box").map(|r| r.name_any()).as_deref(), Some("box5"));
    }
}
