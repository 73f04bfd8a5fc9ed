// What anything but Bun gets when it imports the package: one line instead of a syntax error.
import { bunIsMissing } from './bun-is-missing.js';

// Named, or an import of them by name would fail before this file may say a word.
export let createRelayServer,
  ConfigError,
  ListenError,
  RelayStateError,
  RedisError,
  TlsError,
  TokensError;

throw new Error(`@authmesh/relay ${bunIsMissing()}`);
