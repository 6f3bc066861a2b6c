//! An answer of the HTTP API while it arrives. Only silence ends it: there is no limit for the whole time.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};

use super::fault::Fault;

/// An answer whose headers have arrived.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    idle: Duration,
}

impl Answer {
    /// `idle`: the longest time without a byte.
    pub fn new(response: Response, idle: Duration) -> Self {
        Self { response, idle }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The next bytes. `None`: the answer has ended, which does not say that it is complete.
    ///
    /// # Errors
    /// When the connection breaks or is silent.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let next = tokio::time::timeout(self.idle, self.response.chunk()).await;
        let bytes = next.map_err(|_| Fault::idle(self.idle))?.map_err(Fault::network)?;
        Ok(bytes.map(Vec::from))
    }

    /// Everything, which must be small.
    ///
    /// # Errors
    /// As [`Answer::chunk`], and when there are more bytes than `most`.
    pub async fn all(mut self, most: usize) -> Result<Vec<u8>, Fault> {
        let mut all = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            all.extend(bytes);
            if all.len() > most {
                return Err(Fault::Lasting(anyhow::anyhow!("the answer of the HTTP API has more than {most} bytes")));
            }
        }
        Ok(all)
    }
}
