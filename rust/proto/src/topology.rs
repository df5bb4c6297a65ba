//! Which workers are connected to each other.

/// The rule that says which workers may call each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wiring {
    /// Any two.
    #[default]
    AllToAll,
    /// None: only process 1 and each worker.
    MasterWorker,
    /// Those that their manager named.
    Custom,
}

/// The connections of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    pub wiring: Wiring,
    /// Workers connect when they join, not only once one calls the other.
    pub eager: bool,
}

const EAGER: u8 = 0x80;

impl Topology {
    /// The topology as one byte.
    pub fn to_byte(self) -> u8 {
        let wiring = match self.wiring {
            Wiring::AllToAll => 0,
            Wiring::MasterWorker => 1,
            Wiring::Custom => 2,
        };
        if self.eager { wiring | EAGER } else { wiring }
    }

    /// Reads [`Topology::to_byte`]; nothing where another version made it.
    pub fn from_byte(byte: u8) -> Option<Topology> {
        let wiring = match byte & !EAGER {
            0 => Wiring::AllToAll,
            1 => Wiring::MasterWorker,
            2 => Wiring::Custom,
            _ => return None,
        };
        let eager = byte & EAGER != 0;
        Some(Topology { wiring, eager })
    }
}
