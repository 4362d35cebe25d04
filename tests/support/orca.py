"""ORCA's load report as a protobuf message, made of the numbers that its specification gives to the fields.

The one package that has the message overwrites files of others that are installed beside it.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE, NAME = "xds.data.orca.v3", "OrcaLoadReport"
DOUBLES = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "rps_fractional": 6,
    "eps": 7,
    "application_utilization": 9,
}
MAPS = {"request_cost": 4, "utilization": 5, "named_metrics": 8}
_FIELD = descriptor_pb2.FieldDescriptorProto


def load_report(content: bytes) -> Any:
    """The message that these bytes are. Raises DecodeError; a field that the specification does not have fails too."""
    report = _MESSAGE.FromString(content)
    assert report.SerializeToString(deterministic=True) == _without_unknown(report).SerializeToString(
        deterministic=True
    ), "a field that load reports do not have"
    return report


def _without_unknown(report: Any) -> Any:
    copy = type(report)()
    copy.CopyFrom(report)
    copy.DiscardUnknownFields()
    return copy


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package=PACKAGE, syntax="proto3")
    message = file.message_type.add(name=NAME)
    for name, number in DOUBLES.items():
        message.field.add(name=name, number=number, type=_FIELD.TYPE_DOUBLE, label=_FIELD.LABEL_OPTIONAL)
    for name, number in MAPS.items():
        entry = message.nested_type.add(name="".join(map(str.title, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=_FIELD.TYPE_DOUBLE, label=_FIELD.LABEL_OPTIONAL)
        message.field.add(
            name=name,
            number=number,
            type=_FIELD.TYPE_MESSAGE,
            label=_FIELD.LABEL_REPEATED,
            type_name=f".{PACKAGE}.{NAME}.{entry.name}",
        )
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_described())
_MESSAGE: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{NAME}"))
