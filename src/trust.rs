//! Who may publish: the keys that the operator trusts, and whether a message carries enough of their signatures.
//!
//! Stream and bucket are transports that others can write to. Trust comes from the keyring alone, a file beside the
//! server: the signature binds the message, the message binds slot, version, digest and size, and these bind the bytes.
//! Pure, but for reading key files.

mod ed25519;
mod keyring;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;

pub use self::ed25519::{PublicKey, SIGNATURE_BYTES, SigningKey};
pub use self::keyring::{Keyring, Scope, TrustedKey};
use crate::id::{KeyId, Slot};

/// The most signatures that a message may carry.
pub const MAX_SIGNATURES: usize = 16;
/// How many signatures of one message are checked at most: each reads all of it. Only those that name no key, and are
/// tried with all of them, can come to this.
const MAX_TRIES: usize = 64;

/// A key, a keyring or a setting of trust that is not what it should be: what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) String);

impl Invalid {
    fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }
}

/// What must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required {
    /// Nothing: but where a message is signed, its signatures must be good.
    Off,
    /// Everything but a message that brings a state and nothing else.
    Model,
    /// Everything.
    All,
}

impl Required {
    /// As the setting is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Model => "model",
            Self::All => "all",
        }
    }
}

impl FromStr for Required {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" | "false" => Ok(Self::Off),
            "model" => Ok(Self::Model),
            "all" | "true" => Ok(Self::All),
            _ => Err(format!("{text:?} is none of off, model (all but states) and all")),
        }
    }
}

impl fmt::Display for Required {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A signature as a message carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key that it says it was made with: a hint, which nothing vouches for.
    pub key_id: Option<String>,
    /// What should be a signature.
    pub bytes: Vec<u8>,
}

/// Why the signatures of a message do not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A trusted key is named, and did not sign these bytes.
    BadSignature,
    /// No trusted key has signed.
    UnknownKey,
    /// Enough keys have signed, but the time of some is over.
    KeyExpired,
    /// Enough keys have signed, but not all may for this slot.
    KeyScope,
    /// Good signatures, but fewer than are needed.
    Threshold,
}

/// Why the signatures of a message do not do, for a person too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// What is wrong and what to do.
    pub detail: String,
}

impl Fault {
    fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// The keys that are trusted, and what must be signed with them. The keys may be replaced while the server runs.
#[derive(Debug)]
pub struct Trust {
    keyring: RwLock<Arc<Keyring>>,
    required: Required,
}

impl Trust {
    /// This keyring, and what must be signed.
    pub fn new(keyring: Keyring, required: Required) -> Self {
        Self { keyring: RwLock::new(Arc::new(keyring)), required }
    }

    /// The keys, as they are now.
    pub fn keyring(&self) -> Arc<Keyring> {
        // A pointer is whole even if a writer panicked.
        Arc::clone(&self.keyring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Trusts these keys from now on. What was judged before is not judged again.
    pub fn replace(&self, keyring: Keyring) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
    }

    /// What must be signed.
    pub fn required(&self) -> Required {
        self.required
    }

    /// Whether enough trusted keys have signed these bytes. Which slots they may sign for is the next question, which
    /// [`Vouched::check_scope`] answers.
    ///
    /// `at` is now, or when the message was first taken in: a key whose time is over vouches for nothing new.
    pub fn verify(&self, signed: &[u8], signatures: &[Signature], at: Timestamp) -> Result<Vouched, Fault> {
        let keyring = self.keyring();
        let Tally { good, broken, unknown } = Tally::of(&keyring, signed, signatures);
        let needed = keyring.threshold();
        if let Some(key) = broken.filter(|_| good.len() < needed) {
            let detail = format!("the signature of key {key} is not over these bytes: they were changed after signing");
            return Err(Fault::new(FaultKind::BadSignature, detail));
        }
        if good.is_empty() {
            let detail = format!(
                "signed by {}, which --trusted-keys does not have (it has {})",
                list(unknown.iter().map(String::as_str)),
                list(keyring.keys().iter().map(|key| key.id().as_str()))
            );
            return Err(Fault::new(FaultKind::UnknownKey, detail));
        }
        let in_time: Vec<_> = good.iter().copied().filter(|key| !key.is_expired(at)).collect();
        if in_time.len() >= needed {
            return Ok(Vouched { keys: in_time.into_iter().cloned().collect(), needed });
        }
        if good.len() >= needed {
            let over = list(good.iter().filter(|key| key.is_expired(at)).map(|key| key.id().as_str()));
            let detail = format!("the not_after of key {over} has passed: sign with a newer key");
            return Err(Fault::new(FaultKind::KeyExpired, detail));
        }
        let detail = format!(
            "signed by {} of the {needed} trusted keys that are needed: {}",
            good.len(),
            list(good.iter().map(|key| key.id().as_str()))
        );
        Err(Fault::new(FaultKind::Threshold, detail))
    }
}

/// What became of each signature.
struct Tally<'a> {
    good: Vec<&'a TrustedKey>,
    /// A trusted key whose signature is wrong.
    broken: Option<&'a KeyId>,
    unknown: Vec<String>,
}

impl<'a> Tally<'a> {
    fn of(keyring: &'a Keyring, signed: &[u8], signatures: &[Signature]) -> Self {
        let mut tally = Self { good: Vec::new(), broken: None, unknown: Vec::new() };
        let mut tries = 0;
        for Signature { key_id, bytes } in signatures.iter().take(MAX_SIGNATURES) {
            let named = key_id.as_deref().filter(|id| !id.is_empty());
            let known = |key: &&TrustedKey| named.is_none_or(|id| key.is_called(id));
            let candidates: Vec<_> = keyring.keys().iter().filter(known).collect();
            let fits = candidates.iter().find(|key| {
                tries += 1;
                // One key counts once, however often it signs.
                tries <= MAX_TRIES && !tally.good.contains(*key) && key.public().verify(signed, bytes)
            });
            match (fits, named) {
                (Some(key), _) => tally.good.push(key),
                (None, Some(id)) if candidates.is_empty() => tally.unknown.push(short(id)),
                (None, Some(_)) => {
                    let unsound = candidates.into_iter().find(|key| !tally.good.contains(key));
                    tally.broken = tally.broken.or(unsound.map(TrustedKey::id));
                }
                (None, None) => tally.unknown.push("a key without id".to_owned()),
            }
        }
        tally
    }
}

/// Enough trusted keys, whose signatures were good.
#[derive(Debug)]
pub struct Vouched {
    keys: Vec<TrustedKey>,
    needed: usize,
}

impl Vouched {
    /// Whose signatures were good.
    pub fn signers(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id().clone()).collect()
    }

    /// Whether enough of the keys may sign for each of the slots; for a message without a slot, for everything.
    pub fn check_scope(&self, slots: impl IntoIterator<Item = Slot>) -> Result<(), Fault> {
        let mut any = false;
        for slot in slots {
            any = true;
            self.enough(&format!("for {slot}"), |scope| scope.covers(&slot))?;
        }
        if any { Ok(()) } else { self.enough("for more than some slots", Scope::is_everything) }
    }

    fn enough(&self, what: &str, may: impl Fn(&Scope) -> bool) -> Result<(), Fault> {
        let count = self.keys.iter().filter(|key| may(key.scope())).count();
        if count >= self.needed {
            return Ok(());
        }
        let keys = list(self.keys.iter().map(|key| key.id().as_str()));
        let detail = format!("{count} of {} needed keys may sign {what} (signed by {keys})", self.needed);
        Err(Fault::new(FaultKind::KeyScope, detail))
    }
}

/// What is signed: DSSE's pre-authentication encoding, version 1. It binds the type to the bytes.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().take(4).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
