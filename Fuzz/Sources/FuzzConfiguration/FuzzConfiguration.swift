/// The configuration file: what is accepted is in its ranges, and what is
/// refused says where and what to do.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzConfiguration(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  let bytes = UnsafeBufferPointer(start: data, count: size)
  guard !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else { return 0 }
  do throws(ConfigurationRefused) {
    let configuration = try ConfigurationReader.read(text, file: "fuzz", accounts: accounts)
    typealias Range = Configuration.Range
    precondition(Range.queueEvents.contains(configuration.queueEvents))
    let limits = configuration.limits
    precondition(Range.maxDelayMicroseconds.contains(Int(limits.maxDelayMicroseconds)))
    precondition(Range.sessions.contains(limits.sessions))
    precondition(Range.sessions.contains(limits.sessionsPerUser))
    precondition(Range.sessions.contains(limits.filesystemsPerUser))
    precondition(Range.nodes.contains(limits.nodesPerSession))
    precondition(Range.nodes.contains(limits.nodesPerSessionUnprivileged))
    precondition(Range.descriptors.contains(limits.descriptorsPerUser))
    precondition(Range.queueBytes.contains(limits.queuePerSession))
    precondition(Range.queueBytesPerUser.contains(limits.queuePerUser))
    precondition(configuration.socketPath.utf8.count <= Range.socketPathBytes)
    precondition(configuration.socketMode <= 0o777)
    let names = configuration.shares.map(\.name)
    precondition(Set(names).count == names.count, "two shares of one name")
    for share in configuration.shares {
      precondition(share.path.hasPrefix("/") && !share.path.utf8.contains(0))
      precondition((1...Range.shareNameBytes).contains(share.name.utf8.count))
    }
  } catch {
    precondition(!error.issues.isEmpty)
    for issue in error.issues {
      let said = issue.text(file: "fuzz")
      precondition(!said.isEmpty && !said.contains("\n"), "not one line")
    }
  }
  return 0
}

/// Accounts of no machine in particular.
private let accounts = Accounts(
  user: { ["root": 0, "libvirt-qemu": 64055][$0] }, group: { ["root": 0, "kvm": 104][$0] })
