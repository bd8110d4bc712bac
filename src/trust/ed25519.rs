//! Ed25519 keys (RFC 8032), in the forms in which OpenSSL writes them. The only file that knows the library.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Invalid;
use crate::id::{Digest, KeyId};

/// How long a signature is.
pub const SIGNATURE_BYTES: usize = 64;
/// What stands before the 32 bytes of a public key in DER (RFC 8410).
const SPKI_HEAD: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The points of small order, the sign bit cleared: under such a key one signature fits many messages. The library
/// checks what RFC 8032 asks for, which this is not part of.
const SMALL_ORDER: [[u8; 32]; 7] = [
    filled(0x00, 0x00, 0x00),
    filled(0x01, 0x00, 0x00),
    filled(0xec, 0xff, 0x7f),
    filled(0xed, 0xff, 0x7f),
    filled(0xee, 0xff, 0x7f),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

const fn filled(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// A key that signatures are checked with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, Invalid> {
        let mut point = bytes;
        point[31] &= 0x7f;
        if SMALL_ORDER.contains(&point) {
            return Err(Invalid::new("a public key of small order, which proves nothing"));
        }
        Ok(Self(bytes))
    }

    /// Its id: the first 16 hex digits of the SHA-256 of its 32 bytes.
    pub fn id(&self) -> KeyId {
        Digest::of(&self.0).to_string()[..16].parse().expect("hex digits are a key id")
    }

    /// Whether this is its signature over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// Base64 of the 32 bytes or of their DER, or PEM (`BEGIN PUBLIC KEY`).
impl FromStr for PublicKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let expected = "an Ed25519 public key is base64 of 32 bytes, or PEM (hotserve keygen prints one)";
        let der = match pem(text, "PUBLIC KEY")? {
            Some(der) => der,
            None => STANDARD.decode(text.trim()).map_err(|error| Invalid::new(format!("{expected}: {error}")))?,
        };
        let bytes = der.strip_prefix(SPKI_HEAD).unwrap_or(&der);
        let bytes = <[u8; 32]>::try_from(bytes)
            .map_err(|_| Invalid::new(format!("{expected}: these are {} bytes of something else", der.len())))?;
        Self::from_bytes(bytes)
    }
}

/// Base64 of the 32 bytes.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that signatures are made with.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A new one.
    pub fn generate() -> Result<Self, Invalid> {
        let pair = Ed25519KeyPair::generate().map_err(|_| Invalid::new("the system has no random bytes to give"))?;
        Self::of(pair)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, Invalid> {
        let bytes = <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| Invalid::new("no Ed25519 key"))?;
        Ok(Self { pair, public: PublicKey::from_bytes(bytes)? })
    }

    /// Reads a key file, which only its owner (and a group that only reads) may be able to open.
    pub fn read(path: &Path) -> Result<Self, Invalid> {
        let at = |problem: String| Invalid::new(format!("{}: {problem}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| at(error.to_string()))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = file.metadata().map_err(|error| at(error.to_string()))?.permissions().mode();
            if mode & 0o027 != 0 {
                let what = "others can open the key file, so that it is theirs too";
                return Err(at(format!("{what} (mode {:04o}): chmod 600 it", mode & 0o7777)));
            }
        }
        let mut text = String::new();
        file.take(64 << 10).read_to_string(&mut text).map_err(|error| at(error.to_string()))?;
        Self::from_pem(&text).map_err(|Invalid(problem)| at(problem))
    }

    /// From PEM (`BEGIN PRIVATE KEY`), as `hotserve keygen` and `openssl genpkey -algorithm ed25519` write it.
    pub fn from_pem(text: &str) -> Result<Self, Invalid> {
        let der = pem(text, "PRIVATE KEY")?
            .ok_or_else(|| Invalid::new("no PEM: a signing key begins with -----BEGIN PRIVATE KEY-----"))?;
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| {
            Invalid::new("not an Ed25519 key: make one with hotserve keygen, or openssl genpkey -algorithm ed25519")
        })?;
        Self::of(pair)
    }

    /// As PEM.
    pub fn to_pem(&self) -> Result<String, Invalid> {
        let der = self.pair.to_pkcs8v1().map_err(|_| Invalid::new("the key cannot be written"))?;
        Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref())))
    }

    /// The key that its signatures are checked with.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Its signature over a message: the same each time.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// Never the secret.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

/// The bytes of a PEM block, or nothing if the text is no PEM.
fn pem(text: &str, label: &str) -> Result<Option<Vec<u8>>, Invalid> {
    let Some((_, rest)) = text.split_once("-----BEGIN ") else { return Ok(None) };
    let (found, rest) = rest.split_once("-----").ok_or_else(|| Invalid::new("PEM that is cut off"))?;
    if found != label {
        let cure = match found {
            "ENCRYPTED PRIVATE KEY" => ": decrypt it first (openssl pkey -in FILE)",
            "OPENSSH PRIVATE KEY" => ": make a key with hotserve keygen, or openssl genpkey -algorithm ed25519",
            "PRIVATE KEY" => ": the private key stays with the publisher (openssl pkey -in FILE -pubout)",
            "PUBLIC KEY" => ": signing takes the private key",
            _ => "",
        };
        return Err(Invalid::new(format!("PEM of a{} {found}, not of a {label}{cure}", an(found))));
    }
    let (body, _) = rest
        .split_once(&format!("-----END {label}-----"))
        .ok_or_else(|| Invalid::new("PEM that is cut off: its END line is missing"))?;
    let base64: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(base64).map(Some).map_err(|error| Invalid::new(format!("PEM that is broken: {error}")))
}

fn an(word: &str) -> &'static str {
    if word.starts_with(['A', 'E', 'I', 'O']) { "n" } else { "" }
}
