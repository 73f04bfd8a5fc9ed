/**
 * Every deployment file against the settings, ports and paths that the relay has. Whether a file is right for the
 * program that reads it is tested in tests/schemas, by that program's own schema.
 */
import { describe, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pkg from '../package.json' with { type: 'json' };
import { readEnvironment, readOptions, settings } from '../src/config.ts';

const root = join(import.meta.dir, '..');
const read = (file: string): Promise<string> => Bun.file(join(root, file)).text();
const readYaml = async <T>(file: string): Promise<T> => Bun.YAML.parse(await read(file)) as T;

interface Probe {
  httpGet: { path: string; port: string | number };
}
interface Container {
  env: { name: string; value: string }[];
  ports: { name?: string; containerPort: number }[];
  startupProbe: Probe;
  livenessProbe: Probe;
  readinessProbe?: Probe;
  securityContext: Record<string, unknown>;
  lifecycle: { preStop: { sleep: { seconds: number } } };
}
interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { labels?: Record<string, string> };
}
interface Deployment extends Manifest {
  spec: {
    replicas: number;
    template: {
      spec: {
        containers: [Container];
        terminationGracePeriodSeconds: number;
        securityContext: Record<string, unknown>;
        volumes?: unknown;
        hostNetwork?: unknown;
      };
    };
  };
}
interface CloudRun extends Manifest {
  spec: {
    template: {
      metadata: { annotations: Record<string, string> };
      spec: { containers: [Container] };
    };
  };
}
interface ComposeService {
  environment: Record<string, string>;
  ports: string[];
  stop_grace_period: string;
  mem_limit: string;
  build: { dockerfile: string };
  image: string;
  profiles?: string[];
  networks: string[];
  command: string[];
  healthcheck: { test: string[] };
}
interface ComposeFile {
  services: Record<
    'relay' | 'relay-behind-tls' | 'caddy' | 'relay-1' | 'relay-2' | 'redis' | 'proxy',
    ComposeService
  >;
  networks: Record<string, { internal?: boolean }>;
}
interface FlyFile {
  env: Record<string, string>;
  kill_timeout: number;
  kill_signal: string;
  build: { dockerfile: string };
  metrics: { port: number; path: string };
  http_service: { internal_port: number; checks: { path: string }[] };
}

/** 200 while the relay takes newcomers: not while it drains or has lost its Redis. */
const HEALTH = '/health';
/** 200 as long as the process answers. */
const ALIVE = '/livez';
const { port, drainMs } = readOptions({});
const drainSeconds = drainMs / 1000;

/** The file with what it says to switch on for a Redis. */
const readWithRedis = async <T>(file: string): Promise<T> =>
  Bun.YAML.parse(
    (await read(file))
      .replace(/^  egress: \[\]\n/m, '')
      .replaceAll(/^( *)# ((?:- name: REDIS_URL|run\.googleapis\.com|egress:| {2,}).*)$/gm, '$1$2'),
  ) as T;

const kubernetes = await readYaml<Manifest[]>('deploy/kubernetes.yaml');
const kubernetesWithRedis = await readWithRedis<Manifest[]>('deploy/kubernetes.yaml');
const deployment = kubernetes.find(({ kind }) => kind === 'Deployment') as Deployment;
const pod = deployment.spec.template.spec;
const cloudRun = await readYaml<CloudRun>('deploy/cloudrun.yaml');
const cloudRunWithRedis = await readWithRedis<CloudRun>('deploy/cloudrun.yaml');
const cloudRunContainer = cloudRun.spec.template.spec.containers[0];
const compose = await readYaml<ComposeFile>('docker-compose.yml');
const { relay: alone, 'relay-behind-tls': behindTls, caddy, ...cluster } = compose.services;
const two = [cluster['relay-1'], cluster['relay-2']];
const fly = Bun.TOML.parse(await read('fly.toml')) as unknown as FlyFile;
const unit = await read('deploy/amesh-relay.service');
const dockerfile = await read('Dockerfile.relay');

const asRecord = (env: Container['env']): Record<string, string> =>
  Object.fromEntries(env.map(({ name, value }) => [name, value]));

/** The environment that each file gives the relay. */
const environments: Record<string, Record<string, string>> = {
  'docker-compose.yml': alone.environment,
  'fly.toml': fly.env,
  'deploy/cloudrun.yaml': asRecord(cloudRunContainer.env),
  'deploy/kubernetes.yaml': asRecord(pod.containers[0].env),
  'deploy/amesh-relay.service': Object.fromEntries(
    [...unit.matchAll(/^Environment=([^=]+)=(.*)$/gm)].map(([, name, value]) => [name, value]),
  ),
};

describe('settings', () => {
  const names = new Set<string>(Object.values(settings).map(({ env }) => env));
  /** What the amesh command line reads, on a device. */
  const AMESH_OWN = ['AMESH_RELAY_URL', 'AMESH_BOOTSTRAP_TOKEN'];

  test.each(Object.entries(environments))('%s gives what the relay accepts', (_, environment) => {
    expect(Object.keys(environment).filter((name) => !names.has(name))).toEqual([]);
    expect(() => readEnvironment(environment)).not.toThrow();
  });

  test('docker-compose.yml, both relays of the cluster', () => {
    for (const { environment } of two) {
      expect(Object.keys(environment).filter((name) => !names.has(name))).toEqual([]);
      const { redisUrl, trustProxy } = readEnvironment(environment);
      expect(String(redisUrl)).toStartWith('redis://redis:');
      expect(trustProxy).toEqual({ by: 'hops', hops: 1 });
    }
  });

  test.each([
    ...Object.keys(environments),
    'Dockerfile.relay',
    'cloudbuild.yaml',
    'deploy/nginx.conf',
    'deploy/debian/amesh-relay.default',
    'deploy/Caddyfile',
    'deploy/haproxy.cfg',
    'deploy/apache.conf',
    'deploy/cluster.Caddyfile',
    'deploy/compose.Caddyfile',
    ...new Bun.Glob('docs/*.md').scanSync(root),
    'deploy/gateway.yaml',
  ])('%s names no setting that does not exist, in words neither', async (file) => {
    const named = (await read(file)).match(
      /\b(?:AMESH|TLS|METRICS|LOG|REDIS)_[A-Z_]*[A-Z]\b|\b(?:PORT|HOST)(?==)/g,
    );
    expect((named ?? []).filter((name) => !AMESH_OWN.includes(name) && !names.has(name))).toEqual(
      [],
    );
  });
});

test('the table of AMESH_TRUST_PROXY has only values that are accepted', async () => {
  const [, table = ''] = (await read('docs/proxies.md')).split('## Which `AMESH_TRUST_PROXY`');
  const rules = [...table.matchAll(/^\| [^|]+ \| `([^`]+)`/gm)].map(([, rule]) => rule as string);
  expect(rules.length).toBe(11);
  for (const rule of rules)
    expect(() => readEnvironment({ AMESH_TRUST_PROXY: rule })).not.toThrow();
});

test('IPv6 and IPv4 are served, by the files that name an address', () => {
  const [cluster1, cluster2] = two.map(({ environment }) => environment['HOST']);
  expect([cluster1, cluster2]).toEqual(['::', '::']);
  for (const file of [
    'docker-compose.yml',
    'deploy/kubernetes.yaml',
    'deploy/amesh-relay.service',
  ]) {
    expect(environments[file]?.['HOST'], file).toBe('::');
  }
});

test('every platform waits longer than a drain lasts', () => {
  const { preStop } = pod.containers[0].lifecycle;
  expect(pod.terminationGracePeriodSeconds).toBeGreaterThan(drainSeconds + preStop.sleep.seconds);
  expect(fly.kill_timeout).toBeGreaterThan(drainSeconds);
  expect(fly.kill_signal).toBe('SIGTERM');
  for (const { stop_grace_period } of [alone, behindTls, ...two]) {
    expect(parseInt(stop_grace_period, 10)).toBeGreaterThan(drainSeconds);
  }
  expect(Number(/^TimeoutStopSec=(\d+)$/m.exec(unit)?.[1])).toBeGreaterThan(drainSeconds);
  // Cloud Run gives ten seconds, and nothing changes that.
  expect(Number(asRecord(cloudRunContainer.env)['AMESH_DRAIN_SECONDS'])).toBeLessThan(10);
});

test('no file starts a second instance without Redis', () => {
  const { annotations } = cloudRun.spec.template.metadata;
  expect(annotations['autoscaling.knative.dev/maxScale']).toBe('1');
  expect(deployment.spec.replicas).toBe(1);
  expect(alone.profiles).toBeUndefined();
  for (const { profiles } of Object.values(cluster)) expect(profiles).toEqual(['cluster']);
  for (const { profiles } of [behindTls, caddy]) expect(profiles).toEqual(['tls']);
});

test('what is to be switched on for a Redis is there', () => {
  const containers = kubernetesWithRedis
    .filter(({ kind }) => kind === 'Deployment')
    .map((manifest) => (manifest as Deployment).spec.template.spec.containers[0]);
  for (const { env } of [...containers, cloudRunWithRedis.spec.template.spec.containers[0]]) {
    expect(env.map(({ name }) => name)).toContain('REDIS_URL');
  }
});

describe('ports and paths', () => {
  test('Docker and Compose', () => {
    expect(/^EXPOSE (\d+)$/m.exec(dockerfile)?.[1]).toBe(String(port));
    expect(alone.ports).toEqual([`${port}:${port}`]);
    for (const { build } of [alone, behindTls, ...two])
      expect(build.dockerfile).toBe('Dockerfile.relay');
  });

  test('Compose, TLS: only Caddy can be reached, and the relay takes its word for who the client is', async () => {
    const caddyfile = await read('deploy/compose.Caddyfile');
    expect(caddyfile).toContain(`reverse_proxy relay-behind-tls:${port}\n`);
    expect(caddy.ports).toEqual(['80:80', '443:443', '443:443/udp']);
    expect(behindTls.ports).toBeUndefined();
    expect(behindTls.networks).toEqual(caddy.networks);
    expect(readEnvironment(behindTls.environment).trustProxy).toEqual({ by: 'hops', hops: 1 });
    expect(caddy.healthcheck.test.at(-1)).toEndWith(
      `${/^(http:\S+) \{$/m.exec(caddyfile)?.[1]}${HEALTH}`,
    );
    expect(caddy.image).toBe(cluster.proxy.image);
  });

  test('Compose, the cluster: only the proxy can be reached, and Redis by the relays alone', async () => {
    const { redis, proxy } = cluster;
    const caddyfile = await read('deploy/cluster.Caddyfile');
    expect(caddyfile).toContain(`reverse_proxy relay-1:${port} relay-2:${port} {`);
    expect(caddyfile).toContain(`health_uri ${HEALTH}\n`);
    expect(proxy.ports).toEqual([`3002:${/^:(\d+) \{$/m.exec(caddyfile)?.[1]}`]);
    for (const { ports } of [redis, ...two]) expect(ports).toBeUndefined();
    expect(redis.networks).toEqual(['redis']);
    expect(compose.networks['redis']).toEqual({ internal: true });
    expect(redis.command.join(' ')).toContain('--maxmemory-policy noeviction');
    for (const { image } of [redis, proxy]) expect(image).toMatch(/:\d+\.\d+-alpine$/);
  });

  test('Fly', () => {
    expect(fly.http_service.internal_port).toBe(Number(fly.env['PORT']));
    expect(fly.metrics).toEqual({ port: Number(fly.env['METRICS_PORT']), path: '/metrics' });
    expect(fly.http_service.checks.map(({ path }) => path)).toEqual([HEALTH]);
    expect(fly.build.dockerfile).toBe('Dockerfile.relay');
  });

  test('Cloud Run', () => {
    expect(cloudRunContainer.ports).toEqual([{ containerPort: port }]);
    const { startupProbe, livenessProbe, readinessProbe } = cloudRunContainer;
    // It gets traffic as soon as it has started.
    for (const probe of [startupProbe, readinessProbe]) {
      expect(probe?.httpGet).toEqual({ path: HEALTH, port });
    }
    expect(livenessProbe.httpGet).toEqual({ path: ALIVE, port });
  });

  test('Kubernetes', () => {
    const [{ env, ports, startupProbe, livenessProbe, readinessProbe }] = pod.containers;
    const { PORT, METRICS_PORT } = asRecord(env);
    expect(ports).toEqual([
      { name: 'http', containerPort: Number(PORT) },
      { name: 'metrics', containerPort: Number(METRICS_PORT) },
    ]);
    for (const { httpGet } of [startupProbe, livenessProbe]) {
      expect(httpGet).toEqual({ path: ALIVE, port: 'http' });
    }
    expect(readinessProbe?.httpGet).toEqual({ path: HEALTH, port: 'http' });
  });

  test('the proxies', async () => {
    expect(await read('deploy/haproxy.cfg')).toContain(`server relay 127.0.0.1:${port} check`);
    expect(await read('deploy/haproxy.cfg')).toContain(`option httpchk GET ${HEALTH}\n`);
    expect(await read('deploy/apache.conf')).toContain(`ProxyPass / http://127.0.0.1:${port}/ `);
    expect(await read('deploy/nginx.conf')).toContain(`proxy_pass http://127.0.0.1:${port};`);
    expect(await read('deploy/Caddyfile')).toContain(`reverse_proxy 127.0.0.1:${port}\n`);
  });

  test('systemd starts what the package ships', () => {
    expect(/^ExecStart=(.*)$/m.exec(unit)?.[1]).toEndWith(
      `/node_modules/${pkg.name}/${pkg.bin['amesh-relay']}`,
    );
  });
});

describe('systemd', () => {
  test('keeps trying, and has no reload that would do nothing', () => {
    expect(unit).toMatch(/^\[Unit\]$[^[]*^StartLimitIntervalSec=0$/m);
    expect(unit).toMatch(/^Restart=always$/m);
    expect(Number(/^RestartSec=(\d+)$/m.exec(unit)?.[1])).toBeGreaterThanOrEqual(2);
    expect(unit).not.toMatch(/^ExecReload=/m);
  });

  const analyze = Bun.which('systemd-analyze');
  if (!analyze) console.warn('SKIPPED: there is no systemd-analyze here to judge the unit');

  test.skipIf(!analyze)('the unit is valid', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'amesh-relay-unit-'));
    const file = join(folder, 'amesh-relay.service');
    // systemd also looks whether the command is there.
    await Bun.write(
      file,
      unit.replace('ExecStart=/usr/local/bin/bun', `ExecStart=${process.execPath}`),
    );
    const verdict = Bun.spawnSync([analyze as string, 'verify', '--man=no', file]);
    await rm(folder, { recursive: true });
    expect(verdict.stderr.toString()).toBe('');
    expect(verdict.exitCode).toBe(0);
  });

  test.skipIf(!analyze)('the unit is hardened', () => {
    const file = join(root, 'deploy/amesh-relay.service');
    const verdict = Bun.spawnSync([
      analyze as string,
      'security',
      '--offline=true',
      '--threshold=20',
      file,
    ]);
    expect(verdict.exitCode, verdict.stdout.toString()).toBe(0);
  });
});

test('the repository is named by package.json alone, and all else agrees with it', async () => {
  const repository = /^git\+(https:\/\/github\.com\/([\w-]+)\/[\w-]+)\.git$/.exec(
    pkg.repository.url,
  );
  expect(repository).not.toBeNull();
  const [, url, owner] = repository as RegExpExecArray;
  expect(pkg.bugs).toBe(`${url}/issues`);
  const files = ['*.md', '*.yml', 'docs/*.md', 'deploy/**', '.github/**'].flatMap((glob) => [
    ...new Bun.Glob(glob).scanSync({ cwd: root, dot: true }),
  ]);
  expect(files).toContain('.github/workflows/ci.yml');
  for (const file of files) {
    for (const [, named] of (await read(file)).matchAll(
      /(?:ghcr\.io|github\.com)\/([\w-]+)\/amesh-relay\b/g,
    )) {
      expect(named, file).toBe(owner);
    }
  }
});

describe('hardening', () => {
  test('Kubernetes: the restricted Pod Security Standard', () => {
    const namespace = kubernetes.find(({ kind }) => kind === 'Namespace');
    expect(namespace?.metadata.labels).toEqual({
      'pod-security.kubernetes.io/enforce': 'restricted',
    });
    expect(pod.securityContext).toMatchObject({
      runAsNonRoot: true,
      seccompProfile: { type: 'RuntimeDefault' },
    });
    expect(pod.containers[0].securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    });
    expect([pod.volumes, pod.hostNetwork]).toEqual([undefined, undefined]);
  });

  test('Compose: all alike', () => {
    for (const service of Object.values(compose.services)) {
      expect(service).toMatchObject({
        read_only: true,
        cap_drop: ['ALL'],
        security_opt: ['no-new-privileges:true'],
        pids_limit: 128,
        restart: 'unless-stopped',
      });
      expect(service.mem_limit).toMatch(/^\d+m$/);
    }
  });

  test('the image: not root, of the package’s version, and nothing but the bundle', () => {
    const last = dockerfile.slice(dockerfile.lastIndexOf('\nFROM '));
    expect(last).toContain('\nUSER 1000:1000\n');
    expect(last).toContain(`image.version="${pkg.version}"`);
    expect(last.match(/^(?:COPY|ADD) .*$/gm)).toEqual([
      'COPY --from=build /amesh-relay /usr/local/lib/amesh-relay',
    ]);
  });

  test.each(['ci.yml', 'codeql.yml', 'release.yml'])(
    'workflow %s: pinned, least permissions',
    async (name) => {
      const text = await read(`.github/workflows/${name}`);
      for (const [, action] of text.matchAll(/uses: (.*)$/gm)) {
        expect(action).toMatch(/^[\w-]+(?:\/[\w-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
      }
      expect((Bun.YAML.parse(text) as { permissions: unknown }).permissions).toEqual({
        contents: 'read',
      });
    },
  );
});

test('Dependabot looks after every package.json and workflow', async () => {
  const { updates } = Bun.YAML.parse(await read('.github/dependabot.yml')) as {
    updates: { 'package-ecosystem': string; directories?: string[] }[];
  };
  const looksAfter = updates.find((update) => update['package-ecosystem'] === 'bun')?.directories;
  const packages = ['package.json', '*/package.json', 'tests/*/package.json'].flatMap((glob) => [
    ...new Bun.Glob(glob).scanSync(root),
  ]);
  expect(looksAfter?.map((directory) => join(directory, 'package.json').slice(1)).sort()).toEqual(
    packages.sort(),
  );
  expect(updates.map((update) => update['package-ecosystem'])).toContain('github-actions');
});
