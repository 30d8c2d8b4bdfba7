import HostWatch

/// The journal's MESSAGE_IDs: what scripts and `journalctl` look for.
///
/// They are part of the interface: an id is never given another meaning.
enum MessageID: String, CaseIterable, Sendable {
  // The daemon.
  case started = "4e21ef60f8c040768818c0c24b5f8cdc"
  case stopped = "0fde71a89de14a499ce5cd1d98334172"
  case stopping = "14131c8b714545cda0c2a979326e219a"
  case reloaded = "ad1bc9009bcd4600b117c5587948d657"
  case reloadRefused = "5ccffa3f681640eca62e8554ab591121"
  case configurationRefused = "187a49de16b94fdc92ae3b6abaa53192"
  case needsRestart = "35ece6213ab743569277c165e291fc32"
  case startFailed = "334f41a5a338499da3f133439239e32f"
  case suppressed = "fac9a26906434352a5eddd2d202bdc45"
  case queueLimited = "a82cbfcf16aa4d498034ba76de3a8904"
  case shareHidden = "c2404c2dd4a94fc7a106acbe79e761a1"
  case notProgressing = "232bd5265389458b8bc0ecfa66e2c033"
  case handedOver = "9056c0b0a3e54d6ea6a0b5eece5443b3"
  case takenUp = "657ab81f3d924cf9b0c8bed0f3ec56a0"
  case handOverFailed = "5ff59932666b4cfd9feca5a0cc93cb25"
  case storeLimited = "d43d8202139b43e9b19fc405902c7d04"
  case storeCleared = "1a3f239f0dac449e9df82c1a8c5e3e85"
  // What the library reports.
  case shareReady = "66cb54e4cfe341b1a8304217dd1f4482"
  case shareUnavailable = "d5c97e913fe0475cad6dcedd15f9b038"
  case shareDetached = "4ea25aff06a54b74a9518f9a101d4706"
  case shareRemoved = "6efaa92a1d6941789df03055704492f7"
  case sessionStarted = "62d0250ff3a14ff2ad3c6d0228ef7586"
  case sessionEnded = "d8d7666e4ad54298a3c3e47863708763"
  case sessionRefused = "ecf7edff63454505ac5bdd0a7e06bda3"
  case protocolViolation = "e53b942c295345999d8656f2b985c20b"
  case kernelQueueOverflow = "c6811c70536e403cb98008d4276819eb"
  case sessionQueueOverflow = "83d8a7ef048041fda70b82bc1f0ea124"
  case filesystemAttached = "c3658e3045874d1b9a7a164049c4e36f"
  case filesystemDetached = "62d3e8b993394bbcb3ad59a7ab275ab3"
  case filesystemFailed = "d5eaa19626de452da3f257e7daf5c264"
  case takeUpFailed = "07b0f3a251834109aedca22cdfc58832"
  case descriptorsLimited = "72920899746c4520856e701c75f91e9a"

  /// The id under which a diagnostic is logged; `other` has none.
  init?(_ kind: Diagnostic.Kind) {
    switch kind {
    case .shareReady: self = .shareReady
    case .shareUnavailable: self = .shareUnavailable
    case .shareDetached: self = .shareDetached
    case .shareRemoved: self = .shareRemoved
    case .sessionStarted: self = .sessionStarted
    case .sessionEnded: self = .sessionEnded
    case .sessionRefused: self = .sessionRefused
    case .protocolViolation: self = .protocolViolation
    case .kernelQueueOverflow: self = .kernelQueueOverflow
    case .sessionQueueOverflow: self = .sessionQueueOverflow
    case .filesystemAttached: self = .filesystemAttached
    case .filesystemDetached: self = .filesystemDetached
    case .filesystemFailed: self = .filesystemFailed
    case .queueSizeLimited: self = .queueLimited
    case .takeUpFailed: self = .takeUpFailed
    case .descriptorsLimited: self = .descriptorsLimited
    case .other: return nil
    }
  }
}
