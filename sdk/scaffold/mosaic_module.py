"""What a Mosaic module in Python needs: a main of one line, configuration checked by a schema, and the transport.

It speaks the handshake, the health service, and the calls that every kind of module has. The calls of the module's
own kind are methods of a class, named after them in lower case: Prepare is prepare(request, context). Messages are
made with message("mosaic.container.v1.Proposal").

The contract comes from contract.binpb beside this file: the descriptors of all messages and services, as protoc
writes them with --descriptor_set_out. Any version of Python's protobuf reads it, and no generated code is needed.
"""

import json
import os
import re
import stat
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MAX_MESSAGE = 16 << 20
HEARTBEAT_SECONDS = 10
# Each call takes one thread; Watch and Ask take one each for as long as the module lives.
THREADS = 64

_pool = descriptor_pool.DescriptorPool()
_classes = {}


def _load():
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "contract.binpb"), "rb") as f:
        files = descriptor_pb2.FileDescriptorSet.FromString(f.read())
    for f in files.file:
        _pool.Add(f) if hasattr(_pool, "Add") else _pool.AddSerializedFile(f.SerializeToString())


_load()


def message(name):
    """The class of a message, by its full name."""
    if name not in _classes:
        descriptor = _pool.FindMessageTypeByName(name)
        if hasattr(message_factory, "GetMessageClass"):
            _classes[name] = message_factory.GetMessageClass(descriptor)
        else:
            _classes[name] = message_factory.MessageFactory(_pool).GetPrototype(descriptor)
    return _classes[name]


class Refused(Exception):
    """Ends a call with a code of the contract."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def invalid_argument(text):
    """The caller must change something and not repeat the call."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def failed_precondition(text):
    """The machine must change; the text is shown to the operator."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, text)


class Module:
    """A module: set the fields, add the calls."""

    kind = ""  # isolator, authorizer ... as in the composition
    name = ""  # lower_snake_case
    version = "1.0.0"
    doc = ""  # one line
    calls = []  # beyond those that every module of the kind has
    powers = []  # parts of a container that its proposals set
    after = []
    nesting = False
    standalone = False
    # Attributes of the config block: name to (type, default, doc), the type as in mosaic.module.v1.Attribute. A
    # default of None means that there is none.
    attributes = {}

    def __init__(self):
        self.config = {name: default for name, (_, default, _) in self.attributes.items()}

    def configured(self, config, node):
        """Checks and takes a configuration. Returns a list of (path, what is wrong); empty if it is taken."""
        return []


_TYPES = {
    "STRING": lambda v: isinstance(v, str),
    "BOOL": lambda v: isinstance(v, bool),
    "INTEGER": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "DURATION": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "SIZE": lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    "NUMBER": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "STRING_LIST": lambda v: isinstance(v, list) and all(isinstance(e, str) for e in v),
    "NUMBER_LIST": lambda v: isinstance(v, list) and all(isinstance(e, (int, float)) for e in v),
    "STRING_MAP": lambda v: isinstance(v, dict) and all(isinstance(e, str) for e in v.values()),
    "ANY": lambda v: True,
}


def _check(attributes, document):
    """Reads a configuration document; gives it with defaults filled in, and what is wrong with it."""
    try:
        given = json.loads(document or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return {}, [("", "got %.40r, want a JSON object" % document)]
    config, wrong = {}, []
    for name, (kind, default, _) in attributes.items():
        value = given.pop(name, None)
        if value is None:
            value = default
        elif not _TYPES[kind](value):
            wrong.append((name, "got %.40r, want a value of type %s" % (value, kind.lower())))
        config[name] = value
    wrong.extend((name, "no such attribute") for name in given)
    return config, wrong


class _Control:
    """The calls that every module has, and what they must know of the calls in flight."""

    def __init__(self, module):
        self.module = module
        self.changed = threading.Condition()  # guards what follows
        self.draining = False
        self.in_flight = 0
        self.sequence = 0

    def describe(self, request, context):
        m = self.module
        d = message("mosaic.module.v1.DescribeResponse")(
            kind=m.kind, name=m.name, version=m.version, doc=m.doc, calls=m.calls, powers=m.powers, after=m.after,
            nesting=m.nesting, standalone=m.standalone, services=[_service(m.kind).full_name])
        d.schema.SetInParent()
        for name, (kind, default, doc) in m.attributes.items():
            a = d.schema.attributes.add(name=name, doc=doc)
            a.type = a.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_name[kind].number
            if default is not None:
                a.default_json = json.dumps(default)
        return d

    def configure(self, request, context):
        config, wrong = _check(self.module.attributes, request.config_json)
        if not wrong and not request.dry_run:
            wrong = self.module.configured(config, request.node)
            if not wrong:
                self.module.config = config
        answer = message("mosaic.module.v1.ConfigureResponse")()
        for path, text in wrong:
            answer.errors.add(path=path, message=text)
        return answer

    def watch(self, request, context):
        context.add_callback(self._wake)
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.draining or not context.is_active(), HEARTBEAT_SECONDS)
                if self.draining or not context.is_active():
                    return
                self.sequence += 1
                event = message("mosaic.module.v1.WatchEvent")(sequence=self.sequence)
            event.time.GetCurrentTime()
            event.heartbeat.SetInParent()
            yield event

    def _wake(self):
        with self.changed:
            self.changed.notify_all()

    def ask(self, replies, context):
        return iter(())  # no questions

    def drain(self, request, context):
        with self.changed:
            self.draining = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.in_flight == 0, max(request.deadline_ms, 0) / 1000)
            if self.in_flight:
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "%d calls are still in flight" % self.in_flight)
        return message("mosaic.module.v1.DrainResponse")()

    def guard(self, call):
        """Wraps a call of the module's kind: refuses it when draining, counts it, and gives its errors their codes."""

        def guarded(request, context):
            with self.changed:
                refused = self.draining
                self.in_flight += 0 if refused else 1
            if refused:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the module is draining")
            try:
                return call(request, context)
            except Refused as e:
                context.abort(e.code, str(e))
            finally:
                with self.changed:
                    self.in_flight -= 1
                    self.changed.notify_all()

        return guarded


def _service(kind):
    """The descriptor of a kind's service, the first version of it."""
    package = "mosaic.%s.v1" % kind.replace("_", "")
    name = {"qos_controller": "QoSController"}.get(kind, "".join(word.capitalize() for word in kind.split("_")))
    return _pool.FindServiceByName(package + "." + name)


def _handlers(service, find):
    """A gRPC handler for each call of a service for which find gives a function."""
    made = {}
    for method in service.methods:
        call = find(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower())
        if call is None:
            continue
        streams = descriptor_pb2.MethodDescriptorProto()
        method.CopyToProto(streams)
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[streams.client_streaming, streams.server_streaming]
        made[method.name] = make(
            call, request_deserializer=message(method.input_type.full_name).FromString,
            response_serializer=message(method.output_type.full_name).SerializeToString)
    return grpc.method_handlers_generic_handler(service.full_name, made)


def _transport(control):
    """What hosts built on go-plugin expect beside the contract: health, an orderly end, a stream that stays silent."""
    health = message("grpc.health.v1.HealthCheckResponse")
    serving = health.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_name["SERVING"].number

    def silent(request, context):
        for _ in control.watch(request, context):
            pass
        return iter(())

    def shutdown(request, context):
        threading.Timer(0.05, os._exit, (0,)).start()
        return b""

    raw = dict(request_deserializer=bytes, response_serializer=bytes)
    return [
        _handlers(_pool.FindServiceByName("grpc.health.v1.Health"),
                  {"check": lambda request, context: health(status=serving)}.get),
        grpc.method_handlers_generic_handler("plugin.GRPCController", {
            "Shutdown": grpc.unary_unary_rpc_method_handler(shutdown, **raw)}),
        grpc.method_handlers_generic_handler("plugin.GRPCStdio", {
            "StreamStdio": grpc.unary_stream_rpc_method_handler(silent, **raw)}),
    ]


def _end_with_host():
    """Ends the program when standard input ends: the host holds the other end for as long as it lives."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        while os.read(0, 4096):
            pass
        os._exit(0)


def serve(module):
    """A module's whole main."""
    if os.environ.get("MOSAIC_MODULE") != "mosaic.module.v1":
        sys.exit("This is the %s %r of Mosaic (version %s): %s\nIt is not run by hand. Name it in a composition:\n\n"
                 "  %s %s {\n    command = %s\n  }" % (module.kind, module.name, module.version, module.doc, module.kind,
                                                     json.dumps(module.name), json.dumps(os.path.abspath(sys.argv[0]))))
    control = _Control(module)
    kind = _service(module.kind)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=THREADS), options=[
        ("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)])

    def own(name):
        call = getattr(module, name, None)
        return call and control.guard(call)

    server.add_generic_rpc_handlers([
        _handlers(_pool.FindServiceByName("mosaic.module.v1.Module"), lambda name: getattr(control, name)),
        _handlers(kind, own)] + _transport(control))
    address = os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "socket")
    server.add_insecure_port("unix:" + address)
    server.start()
    print("1|1|unix|%s|grpc|" % address, flush=True)
    os.dup2(2, 1)  # what is printed from now on belongs into the log
    threading.Thread(target=_end_with_host, daemon=True).start()
    server.wait_for_termination()
