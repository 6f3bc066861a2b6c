//! What a computer's key may do over the HTTP API. The words are those of `key.allow` of its class, as the operator has copied them into the
//! computer's record. Verification reads the record live in any case, so a right costs no request, and one that is taken away is gone with the
//! next request. A word that this version does not know allows nothing.

use crate::resources::KeyRight;

/// The rights of one key. The default: everything that a computer's key can do, for keys that no class limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRights(Option<Vec<KeyRight>>);

impl KeyRights {
    /// From the words of a record. `None`: everything.
    pub fn of(words: Option<&[String]>) -> Self {
        let known = |words: &[String]| KeyRight::ALL.into_iter().filter(|right| words.iter().any(|word| word == right.as_str())).collect();
        Self(words.map(known))
    }

    /// Whether it contains this right.
    pub fn allow(&self, right: KeyRight) -> bool {
        self.0.as_ref().is_none_or(|rights| rights.contains(&right))
    }

    /// The words, if it is limited.
    pub fn words(&self) -> Option<Vec<&'static str>> {
        self.0.as_ref().map(|rights| rights.iter().map(|right| right.as_str()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_known_allows_nothing() {
        let of = |words: &[&str]| KeyRights::of(Some(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()));
        let allowed = |rights: &KeyRights| KeyRight::ALL.into_iter().filter(|right| rights.allow(*right)).collect::<Vec<_>>();
        assert_eq!(allowed(&KeyRights::of(None)), KeyRight::ALL);
        assert_eq!(allowed(&of(&["get", "fly", "Delete", "delete "])), [KeyRight::Get]);
        assert_eq!(allowed(&of(&[])), []);
        assert_eq!(allowed(&of(&["sessions", "delete"])), [KeyRight::Sessions, KeyRight::Delete]);
    }
}
