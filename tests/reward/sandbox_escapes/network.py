"""Reaching other machines and other processes through sockets."""

from __future__ import annotations

from sandbox_escapes.attempt import Attempt, Scene


def _hit(scene: Scene, output: str) -> bool:
    return b"hello" in scene.hits


CONNECT = (
    "import socket\nconnection = socket.create_connection(('127.0.0.1', {{TCP}}), 2)\n"
    "connection.send(b'hello')\nconnection.recv(1)"
)
UNIX = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({name})\ns.send(b'hello')\ns.recv(1)"
RAW = "import socket\nsocket.socket({arguments})\nprint('DONE')"

ATTEMPTS = [
    Attempt("connect_tcp", CONNECT, _hit),
    Attempt(
        "connect_tcp_from_thread",
        "import threading\ndef work():\n "
        + CONNECT.replace("\n", "\n ")
        + "\nt = threading.Thread(target=work)\nt.start()\nt.join()",
        _hit,
    ),
    Attempt(
        "send_udp",
        (
            "import socket, time\n"
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('127.0.0.1', "
            "{{UDP}}))\ntime.sleep(0.1)"
        ),
        _hit,
    ),
    Attempt(
        "ask_name_server",
        (
            "import socket, struct, time\n"
            "q = struct.pack('>6H', 1, 256, 1, 0, 0, 0) + b'\\5hello\\0' + struct.pack('>2H', 1, "
            "1)\n"
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(q, ('127.0.0.1', {{UDP}}))\n"
            "time.sleep(0.1)"
        ),
        lambda scene, output: any(b"hello" in hit for hit in scene.hits),
    ),
    Attempt("listen_tcp", "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nprint('DONE')"),
    Attempt("connect_unix_path", UNIX.format(name="'{{FOLDER}}/s'"), _hit),
    Attempt("connect_unix_abstract", UNIX.format(name="'\\0escape-{{MARK}}'"), _hit),
    Attempt("raw_socket", RAW.format(arguments="socket.AF_INET, socket.SOCK_RAW, 1"), needs_root=True),
    Attempt("packet_socket", RAW.format(arguments="socket.AF_PACKET, socket.SOCK_RAW, 3"), needs_root=True),
    Attempt("netlink_socket", RAW.format(arguments="socket.AF_NETLINK, socket.SOCK_RAW, 0")),
    Attempt("list_interfaces", "import socket\nprint('DONE' if socket.if_nameindex() else '')"),
    Attempt(
        "socket_by_number",
        "import ctypes, os\nnumber = {'x86_64': 41, 'aarch64': 198}[os.uname().machine]\n"
        "print('DONE' if ctypes.CDLL(None).syscall(number, 2, 1, 0) >= 0 else '')",
    ),
    Attempt(
        "socket_by_executing_python",
        (
            "import subprocess, sys\n"
            'code = \'import socket; socket.create_connection(("127.0.0.1", {{TCP}}), '
            "2).send(b\"hello\")'\nsubprocess.run([sys.executable, '-IS', '-c', code])"
        ),
        _hit,
    ),
]
