//! Reads and writes records. A write that conflicts returns the live record, from which the next plan is made.

use kube::api::PostParams;

use super::{Applier, Error};
use crate::computer::action::Effect;
use crate::guards::{self, Guard};
use crate::resources::ComputerRecord;
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::requests::get;

impl Applier {
    pub(super) async fn create_record(&self, record: ComputerRecord) -> Result<Effect, Error> {
        let api = self.namespaced::<ComputerRecord>(&self.namespace);
        match call(api.create(&PostParams::default(), &record)).await {
            Ok(created) => Ok(Effect::Record(Box::new(created))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_record(&record).await,
            Err(source) => Err(Error::call("creating the ComputerRecord", source)),
        }
    }

    pub(super) async fn save_record(&self, mut record: ComputerRecord) -> Result<Effect, Error> {
        if !guards::on(Guard::RecordVersion) {
            record.metadata.resource_version = None;
        }
        let api = self.namespaced::<ComputerRecord>(&self.namespace);
        let name = record.metadata.name.clone().unwrap_or_default();
        match call(api.replace(&name, &PostParams::default(), &record)).await {
            Ok(saved) => Ok(Effect::Record(Box::new(saved))),
            Err(source) if classify(&source) == ErrorClass::Conflict => match self.read_record(&record).await? {
                // Nobody has changed it: something answers 409 to every write, so the backoff applies.
                Effect::Overtaken(live) if live.metadata.resource_version == record.metadata.resource_version => {
                    Err(Error::call("saving the ComputerRecord", source))
                }
                effect => Ok(effect),
            },
            Err(source) => Err(Error::call("saving the ComputerRecord", source)),
        }
    }

    /// The record of a computer, live.
    ///
    /// # Errors
    /// When the answer is unknown.
    pub async fn find_record(&self, uid: &str) -> Result<Option<ComputerRecord>, Error> {
        Ok(get(&self.namespaced::<ComputerRecord>(&self.namespace), uid, "reading the ComputerRecord").await?)
    }

    async fn read_record(&self, record: &ComputerRecord) -> Result<Effect, Error> {
        let name = record.metadata.name.clone().unwrap_or_default();
        match get(&self.namespaced::<ComputerRecord>(&self.namespace), &name, "reading the ComputerRecord").await? {
            Some(found) => Ok(Effect::Overtaken(Box::new(found))),
            None => Err(Error::conflict(format!("ComputerRecord {name}"))),
        }
    }
}
