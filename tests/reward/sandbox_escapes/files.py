"""Reading and writing what is not the program's."""

from __future__ import annotations

from sandbox_escapes.attempt import Attempt, Scene


def _outside_exists(scene: Scene, output: str) -> bool:
    return any(path.exists() for path in scene.outside)


def _secret_changed(scene: Scene, output: str) -> bool:
    return not scene.secret.exists() or scene.secret.read_text() != scene.token


def _secret_opened_up(scene: Scene, output: str) -> bool:
    return scene.secret.stat().st_mode & 0o777 != 0o600


def _new_file(scene: Scene, output: str) -> bool:
    return (scene.folder / "new").exists()


ATTEMPTS = [
    Attempt("read_absolute_path", "print(open('{{SECRET}}').read())"),
    Attempt("read_shadow", "print('DONE' if 'root:' in open('/etc/shadow').read() else '')", needs_root=True),
    Attempt("read_passwd", "print('DONE' if 'root:' in open('/etc/passwd').read() else '')"),
    Attempt("read_through_dots", "print(open('../' * 30 + '{{SECRET}}').read())"),
    Attempt("read_through_symlink", "import os\nos.symlink('{{SECRET}}', 'link')\nprint(open('link').read())"),
    Attempt("read_through_hard_link", "import os\nos.link('{{SECRET}}', 'link')\nprint(open('link').read())"),
    Attempt("read_through_proc_root", "print(open('/proc/self/root{{SECRET}}').read())"),
    Attempt(
        "read_through_working_directory_of_others",
        "print(open('/proc/{{VICTIM}}/root{{SECRET}}').read())",
        victim=True,
        needs_root=True,
    ),
    Attempt(
        "find_by_walking",
        "import os\nfor base in ('{{FOLDER}}', '/'):\n for folder, _, names in os.walk(base):\n"
        "  for name in names:\n"
        "   if '{{MARK}}' in name: print(open(os.path.join(folder, name)).read()); raise SystemExit",
    ),
    Attempt("list_foreign_directory", "import os\nprint('DONE' if os.listdir('{{FOLDER}}') else '')"),
    Attempt("list_configuration", "import os\nprint('DONE' if os.listdir('/etc') else '')"),
    Attempt("read_home", "import glob, os\nprint(open(glob.glob(os.path.expanduser('~/secret-*'))[0]).read())"),
    Attempt("read_environment", "import os\nprint(os.environ['SECRET'])"),
    Attempt("read_own_environ_file", "print(open('/proc/self/environ').read())"),
    Attempt(
        "read_parent_environ_file", "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())", kind="parent"
    ),
    Attempt("read_arguments_of_others", "print(open('/proc/{{VICTIM}}/cmdline').read())", victim=True),
    Attempt("read_machine_name", "import socket\nprint('DONE' if socket.gethostname() == '{{HOST}}' else '')"),
    Attempt("read_mounts", "print('DONE' if open('/proc/self/mountinfo').read() else '')"),
    Attempt("read_sysfs", "import os\nprint('DONE' if os.listdir('/sys/class') else '')"),
    Attempt(
        "read_inherited_descriptors",
        "import os\nfor fd in range(3, 300):\n try: print(os.pread(fd, 100, 0))\n except OSError: pass",
    ),
    Attempt(
        "leave_through_inherited_directory",
        "import os\nfor fd in range(300):\n"
        " try: print(open(os.open('../' * 30 + '{{SECRET}}', os.O_RDONLY, dir_fd=fd)).read())\n except OSError: pass",
    ),
    Attempt(
        "leave_chroot",
        (
            "import os\nos.mkdir('jail-{{MARK}}')\nfd = os.open('.', os.O_RDONLY)\n"
            "os.chroot('jail-{{MARK}}')\nos.fchdir(fd)\nfor _ in range(40): os.chdir('..')\n"
            "os.chroot('.')\nprint(open('{{SECRET}}').read())"
        ),
        needs_root=True,
    ),
    Attempt("write_foreign_directory", "open('{{FOLDER}}/new', 'w').write('x')", _new_file),
    Attempt("write_machine_tmp", "open('/tmp/escape-{{MARK}}', 'w').write('x')", _outside_exists),
    Attempt("write_shared_memory_files", "open('/dev/shm/escape-{{MARK}}', 'w').write('x')", _outside_exists),
    Attempt(
        "overwrite_through_symlink",
        "import os\nos.symlink('{{SECRET}}', 'l')\nopen('l', 'w').write('x')",
        _secret_changed,
    ),
    Attempt("delete_file", "import os\nos.unlink('{{SECRET}}')", _secret_changed),
    Attempt("rename_file", "import os\nos.rename('{{SECRET}}', '{{FOLDER}}/other')", _secret_changed),
    Attempt("change_permissions", "import os\nos.chmod('{{SECRET}}', 0o666)", _secret_opened_up),
    Attempt(
        "write_standard_library",
        "import os\npath = os.path.dirname(os.__file__) + '/escape_{{MARK}}.py'\nopen(path, 'w').write('x = 1')\n"
        "print('DONE')\nos.unlink(path)",
        needs_root=True,
    ),
    Attempt(
        "write_root_directory",
        "import os\nopen('/escape_{{MARK}}', 'w')\nprint('DONE')\nos.unlink('/escape_{{MARK}}')",
        needs_root=True,
    ),
    Attempt(
        "change_input",
        "import os\nos.write(0, b'x')\nos.lseek(0, 0, 0)\nprint('DONE' if os.read(0, 1) == b'x' else '')",
    ),
    Attempt(
        "find_file_of_earlier_run",
        "print(open('/tmp/escape-{{MARK}}').read())",
        before="open('/tmp/escape-{{MARK}}', 'w').write('DONE')",
    ),
    Attempt(
        "execute_own_binary",
        (
            "import os, shutil, subprocess\nshutil.copy('{{PYTHON}}', 'copy')\n"
            "os.chmod('copy', 0o755)\n"
            "print(subprocess.run(['./copy', '-S', '-c', 'print(\"DO\" + \"NE\")'], "
            "capture_output=True, text=True).stdout)"
        ),
    ),
    Attempt(
        "execute_own_binary_by_loader",
        (
            "import glob, os, shutil, subprocess\nshutil.copy('{{PYTHON}}', 'copy')\n"
            "os.chmod('copy', 0o755)\nloader = glob.glob('/lib*/ld-linux-*')[0]\n"
            "print(subprocess.run([loader, './copy', '-S', '-c', 'print(\"DO\" + \"NE\")'], "
            "capture_output=True, text=True).stdout)"
        ),
    ),
    Attempt(
        "execute_shell",
        "import subprocess\nprint(subprocess.run('echo DO''NE', shell=True, capture_output=True, text=True).stdout)",
    ),
    Attempt(
        "find_expected_in_frames",
        (
            "import sys\nframe = sys._getframe()\nwhile frame:\n"
            " print(frame.f_globals.get('expected'), frame.f_locals)\n frame = frame.f_back"
        ),
        kind="grader",
    ),
    Attempt(
        "find_expected_in_objects",
        (
            "import gc\nfor one in gc.get_objects():\n"
            " if isinstance(one, dict) and isinstance(one.get('expected'), str): "
            "print(one['expected'])"
        ),
        kind="grader",
    ),
    Attempt(
        "find_expected_in_memory",
        (
            "import ctypes, re\nlibc = ctypes.CDLL(None)\nlibc.sbrk.restype = ctypes.c_void_p\n"
            "end = libc.sbrk(0)\ntext = []\n"
            "for start in [end - (1 << 20), id(object()) & ~0xfffff, id('ab' * 20) & ~0xfffff]:\n"
            " for page in range(start, start + (1 << 20), 4096):\n"
            "  if libc.mincore(ctypes.c_void_p(page), 1, ctypes.create_string_buffer(1)) == 0: "
            "text.append(ctypes.string_at(page, 4096))\n"
            "print(*(m.decode() for m in re.findall(rb'token-[0-9a-f]{32}', b''.join(text))))"
        ),
        kind="grader",
    ),
]
