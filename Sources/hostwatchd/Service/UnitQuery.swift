import CSystemd
import Glibc
import HostWatch

/// What the service manager is about to do with this unit, and what the unit allows:
/// asked over D-Bus, from systemd itself, so that no message bus is needed.
@safe
final class UnitQuery {
  /// Why a signal asked the daemon to end.
  enum Ending {
    /// A new process follows.
    case restart
    /// None does: the unit stops, or nobody asked systemd.
    case stop
    case unknown(String)
  }

  private let bus: OpaquePointer
  private let path: String

  private static let manager = "org.freedesktop.systemd1"
  private static let timeoutMicroseconds: UInt64 = 3_000_000

  init() throws(SystemError) {
    path = try Self.unitPath()
    unsafe bus = try unsafe Self.open()
  }

  deinit { _ = unsafe sd_bus_flush_close_unref(bus) }

  /// systemd itself, or else the system bus.
  private static func open() throws(SystemError) -> OpaquePointer {
    do throws(SystemError) {
      return try unsafe connect(to: "unix:path=/run/systemd/private")
    } catch {
      var made: OpaquePointer?
      guard unsafe sd_bus_open_system(&made) >= 0, let bus = unsafe made else { throw error }
      _ = unsafe sd_bus_set_method_call_timeout(bus, timeoutMicroseconds)
      return unsafe bus
    }
  }

  private static func connect(to address: String) throws(SystemError) -> OpaquePointer {
    var made: OpaquePointer?
    var result = unsafe sd_bus_new(&made)
    guard result >= 0, let bus = unsafe made else { throw SystemError("sd_bus_new", -result) }
    result = unsafe sd_bus_set_address(bus, address)
    if result >= 0 { result = unsafe sd_bus_set_method_call_timeout(bus, timeoutMicroseconds) }
    if result >= 0 { result = unsafe sd_bus_start(bus) }
    guard result >= 0 else {
      _ = unsafe sd_bus_unref(bus)
      throw SystemError("connect(\(address))", -result)
    }
    return unsafe bus
  }

  /// The unit's object path.
  private static func unitPath() throws(SystemError) -> String {
    var unit: UnsafeMutablePointer<CChar>?
    var result = unsafe sd_pid_get_unit(0, &unit)
    defer { unsafe free(unit) }
    guard result >= 0, let unit = unsafe unit else {
      throw SystemError("sd_pid_get_unit", -result)
    }
    var path: UnsafeMutablePointer<CChar>?
    result = unsafe sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &path)
    defer { unsafe free(path) }
    guard result >= 0, let path = unsafe path else {
      throw SystemError("sd_bus_path_encode", -result)
    }
    return unsafe String(cString: path)
  }

  /// The unit's FileDescriptorStoreMax=.
  func storeMax() throws(SystemError) -> Int {
    var value: UInt32 = 0
    // 'u' is a uint32, which is where the call puts it.
    let result = unsafe sd_bus_get_property_trivial(
      bus, Self.manager, path, "org.freedesktop.systemd1.Service", "FileDescriptorStoreMax", nil,
      CChar(UInt8(ascii: "u")), &value)
    guard result >= 0 else { throw SystemError("FileDescriptorStoreMax", -result) }
    return Int(value)
  }

  /// What the unit's job says. A restart's job lasts until the new process is up.
  func ending() -> Ending {
    do throws(SystemError) {
      guard let job = try jobPath() else { return .stop }
      var type: UnsafeMutablePointer<CChar>?
      let result = unsafe sd_bus_get_property_string(
        bus, Self.manager, job, "org.freedesktop.systemd1.Job", "JobType", nil, &type)
      defer { unsafe free(type) }
      guard result >= 0, let type = unsafe type else { throw SystemError("JobType", -result) }
      return unsafe String(cString: type) == "stop" ? .stop : .restart
    } catch {
      return .unknown("\(error)")
    }
  }

  /// The path of the unit's job; nil when it has none.
  private func jobPath() throws(SystemError) -> String? {
    var reply: OpaquePointer?
    var result = unsafe sd_bus_get_property(
      bus, Self.manager, path, "org.freedesktop.systemd1.Unit", "Job", nil, &reply, "(uo)")
    defer { _ = unsafe sd_bus_message_unref(reply) }
    guard result >= 0 else { throw SystemError("Job", -result) }
    var id: UInt32 = 0
    var text: UnsafePointer<CChar>?
    result = unsafe sd_bus_message_enter_container(reply, CChar(UInt8(ascii: "r")), "uo")
    if result >= 0 {
      result = unsafe sd_bus_message_read_basic(reply, CChar(UInt8(ascii: "u")), &id)
    }
    if result >= 0 {
      // 'o' is a string that lives as long as the message.
      result = unsafe sd_bus_message_read_basic(reply, CChar(UInt8(ascii: "o")), &text)
    }
    guard result >= 0, let text = unsafe text else { throw SystemError("Job", -result) }
    return id == 0 ? nil : unsafe String(cString: text)
  }
}
