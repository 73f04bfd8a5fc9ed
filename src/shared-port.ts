/**
 * A port that two listeners share for a while (SO_REUSEPORT).
 *
 * Linux gives each new connection to one of the two by chance. When a listener is closed, Linux resets its connections
 * that were not accepted yet: one or two for each swap of certificates under eight handshakes at a time, and more the
 * longer a client takes to send its first bytes. So a program (classic BPF) of one instruction tells Linux to give all new
 * connections to the newer listener. The older one has none left to accept when it is closed.
 */
import { dlopen, ptr } from 'bun:ffi';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';

const SOL_SOCKET = 1;
const SO_ATTACH_REUSEPORT_CBPF = 51;
const BPF_RET_K = 0x06;
/** The index of the newer of two listeners. If there is only one, the kernel finds none there, and takes that one. */
const NEWER = 1;

/**
 * Makes the first listener of a port, which others can share later, and which the newest of two then yields to. Where
 * the system can't do that (macOS, gVisor), newcomers come to either.
 * @throws What Bun throws when the port can't be had, also where another program shares it already.
 */
export function listenFirst<T>(hostname: string, port: number, listen: () => T): T {
  // A second relay on the port would start without an error otherwise.
  if (port !== 0) void Bun.serve({ hostname, port, fetch: () => new Response() }).stop(true);
  const before = openSockets();
  const listener = listen();
  for (const descriptor of openSockets()) {
    if (!before.has(descriptor)) preferNewer(Number(descriptor));
  }
  return listener;
}

/**
 * The descriptors of this process that are sockets. Bun does not tell which one is a server's. Others are left out, since
 * the folder itself has one while it is read, and the next socket may get the same number.
 */
function openSockets(): Set<string> {
  const folder = '/proc/self/fd';
  const isSocket = (descriptor: string): boolean => {
    try {
      return readlinkSync(`${folder}/${descriptor}`).startsWith('socket:');
    } catch {
      return false;
    }
  };
  return new Set(existsSync(folder) ? readdirSync(folder).filter(isSocket) : []);
}

/** Does nothing to a socket that shares no port, or where the system does not know how. */
function preferNewer(descriptor: number): void {
  try {
    const libc = dlopen('libc.so.6', {
      setsockopt: { args: ['int', 'int', 'int', 'ptr', 'u32'], returns: 'int' },
    });
    // struct sock_filter { u16 code; u8 jt; u8 jf; u32 k; }
    const instruction = Uint32Array.of(BPF_RET_K, NEWER);
    // struct sock_fprog { u16 len; struct sock_filter *filter; }
    const program = BigUint64Array.of(1n, BigInt(ptr(instruction)));
    const size = program.byteLength;
    libc.symbols.setsockopt(descriptor, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, ptr(program), size);
    libc.close();
  } catch {
    // There is no such library.
  }
}
