/// Kernel records as bytes, for tests.
package enum RecordBytes {
  package static func record(_ slot: KernelSimulator.Slot) -> [UInt8] {
    var infos: [UInt8] = []
    if slot.newDirectory != 0 {
      infos += info(10, slot.directory, slot.name)
      infos += info(12, slot.newDirectory, slot.newName)
    } else if slot.directory != 0 {
      infos += info(2, slot.directory, slot.name)
    }
    if slot.object != 0 { infos += info(1, slot.object, nil) }
    var bytes = number(UInt32(24 + infos.count)) + [3, 0] + number(UInt16(24))
    bytes +=
      number(slot.mask) + number(UInt32(bitPattern: -1)) + number(UInt32(bitPattern: slot.pid))
    return bytes + infos
  }

  package static func overflow() -> [UInt8] {
    number(UInt32(24)) + [3, 0] + number(UInt16(24)) + number(UInt64(0x4000))
      + number(UInt32(bitPattern: -1)) + number(UInt32(0))
  }

  package static func info(_ type: UInt8, _ object: UInt32, _ name: String?) -> [UInt8] {
    var body = number(UInt64(0x1234)) + number(UInt32(8)) + number(UInt32(1))
    body += number(object) + number(object &* 7)
    if let name { body += Array(name.utf8) + [0] }
    while (4 + body.count) % 4 != 0 { body.append(0) }
    return [type, 0] + number(UInt16(4 + body.count)) + body
  }

  package static func number<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
    var little = value.littleEndian
    return unsafe withUnsafeBytes(of: &little) { unsafe [UInt8]($0) }
  }
}
