//! The decoders that read bytes from outside, as they are in `src/`, without the rest of the server: they build fast,
//! and only they are measured.

#[path = "../../src"]
mod hotserve {
    pub mod id;
    pub mod trust;
    pub mod error;
    pub mod notification;
    pub mod manifest;
    pub mod config {
        //! The settings, of which a message uses the units.

        mod units;

        pub use self::units::{HumanDuration, Size};
    }
    pub mod aws {
        //! What the service says, without the service.

        /// As in `src/aws.rs`.
        #[derive(Debug)]
        pub struct Fault {
            /// What to do about it.
            pub kind: FaultKind,
            /// What it is, for a person.
            pub message: String,
        }

        /// As in `src/aws.rs`.
        #[derive(Debug)]
        pub struct FaultKind;

        impl FaultKind {
            /// A bounded name.
            pub fn code(&self) -> &'static str {
                "unavailable"
            }
        }
    }
    pub mod telemetry {
        //! Traces, of which a message may name one.

        mod context;

        pub use self::context::TraceContext;
    }
    pub mod serving {
        //! What is served, of which the names are.

        pub mod layout;
    }
    pub mod http {
        //! The interface, of which a request is read.

        pub mod v2 {
            //! What of the Open Inference Protocol is pure.

            mod data;
            pub mod request;
            pub mod wire;
        }
    }
    pub mod source {
        //! The source without its streams.

        use bytes::Bytes;

        use crate::id::Position;

        /// As in `src/source.rs`.
        #[derive(Debug, Clone)]
        pub struct Record {
            /// Where it stands.
            pub position: Position,
            /// What it says.
            pub data: Bytes,
        }

        pub mod aggregate;
    }
}

pub use hotserve::{aws, config, error, http, id, manifest, notification, serving, source, telemetry, trust};
