/** deploy/prometheus, by Prometheus' own promtool, and against the metrics that the relay has. */
import { describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { createRuns } from '../src/check/every.ts';
import { createRegistry } from '../src/observe/metrics.ts';
import { startRelay, type TestRelay } from './support.ts';

const folder = join(import.meta.dir, '../deploy/prometheus');
const read = (file: string): Promise<string> => Bun.file(join(folder, file)).text();

interface Alerts {
  groups: { rules: { alert: string; expr: string }[] }[];
}
interface Tests {
  tests: {
    input_series: { series: string }[];
    alert_rule_test: { alertname: string; exp_alerts: object[] }[];
  }[];
}

const { rules } = (Bun.YAML.parse(await read('alerts.yml')) as Alerts)
  .groups[0] as Alerts['groups'][0];
const cases = (Bun.YAML.parse(await read('alerts.test.yml')) as Tests).tests;

/** Each metric of the relay and of the check with the values that its labels have. */
async function metrics(relay: TestRelay): Promise<Map<string, Set<string>>> {
  const registries = [createRegistry(relay.sockets), (await createRuns()).registry];
  const all = (await Promise.all(registries.map((it) => it.getMetricsAsJSON()))).flat();
  return new Map(
    all.map(({ name, values }) => [
      name,
      new Set(values.flatMap(({ labels }) => Object.values(labels).map(String))),
    ]),
  );
}

test('every metric and every label of an alert exists', async () => {
  const known = await metrics(await startRelay());
  const selectors = [
    ...rules.map(({ expr }) => expr),
    ...cases.flatMap(({ input_series }) => input_series.map(({ series }) => series)),
  ].flatMap((text) => [...text.matchAll(/(amesh_relay_\w+)\{([^}]*)\}/g)]);
  expect(selectors.length).toBeGreaterThan(20);
  for (const [, name = '', labels = ''] of selectors) {
    expect([...known.keys()]).toContain(name);
    for (const [, values = ''] of labels.matchAll(/(?:code|outcome)=~?"([^"]+)"/g)) {
      for (const value of values.split('|')) expect([...(known.get(name) ?? [])]).toContain(value);
    }
  }
  // Each is named with its job.
  for (const { expr } of rules) {
    for (const [, name = '', after] of expr.matchAll(/\b(amesh_relay_\w+)(\{job="[^"]*")?/g)) {
      const job = name.startsWith('amesh_relay_check_') ? 'amesh-relay-check' : 'amesh-relay';
      expect(after).toBe(`{job="${job}"`);
    }
  }
});

interface Dashboard {
  panels: { title: string; targets: { expr: string; legendFormat: string }[] }[];
}
const { panels } = (await Bun.file(
  join(folder, '../grafana/amesh-relay.json'),
).json()) as Dashboard;
/** The dashboard's queries, with what Grafana puts in place of its variables. */
const queries = panels.flatMap(({ title, targets }) =>
  targets.map(({ expr, legendFormat }) => ({
    title,
    legendFormat,
    expr: expr
      .replaceAll('$job', 'amesh-relay')
      .replaceAll('$__rate_interval', '1m')
      .replaceAll('$__range', '6h'),
  })),
);

test('every metric, label and value of the dashboard exists', async () => {
  const relay = await startRelay();
  const values = await metrics(relay);
  const all = await createRegistry(relay.sockets).getMetricsAsJSON();
  const labels = new Set(
    all.flatMap((metric) => metric.values.flatMap((v) => Object.keys(v.labels))),
  );
  for (const { expr, legendFormat } of queries) {
    const named = [...expr.matchAll(/amesh_relay_\w+/g)].map(([name]) =>
      name.replace(/_bucket$/, ''),
    );
    if (!expr.startsWith('sum(up')) expect(named.length, expr).toBeGreaterThan(0);
    for (const name of named) expect([...values.keys()]).toContain(name);
    const [, kept = ''] = /\bby \((\w+)\)/.exec(expr) ?? [];
    if (kept) expect([...labels]).toContain(kept);
    for (const [, label = ''] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
      // What a query sums over has lost its other labels.
      expect(kept || 'instance').toBe(label);
    }
    for (const [, outcome = ''] of expr.matchAll(/outcome="([^"]+)"/g)) {
      expect([...(values.get('amesh_relay_sessions_ended_total') ?? [])]).toContain(outcome);
    }
  }
});

test('each alert is tried: it fires, and it stays silent', () => {
  for (const { alert } of rules) {
    const outcomes = cases
      .flatMap(({ alert_rule_test }) => alert_rule_test)
      .filter(({ alertname }) => alertname === alert)
      .map(({ exp_alerts }) => exp_alerts.length > 0);
    expect(new Set(outcomes), alert).toEqual(new Set([true, false]));
  }
});

test('the jobs, ports and labels are those of the other files', async () => {
  const { scrape_configs: jobs } = Bun.YAML.parse(await read('prometheus.yml')) as {
    scrape_configs: { job_name: string }[];
  };
  expect(jobs.map(({ job_name }) => job_name)).toEqual(['amesh-relay']);
  const { metadata, spec } = Bun.YAML.parse(await read('podmonitor.yaml')) as {
    metadata: { namespace: string };
    spec: { jobLabel: string; selector: { matchLabels: Record<string, string> } };
  };
  expect(spec.selector.matchLabels[spec.jobLabel]).toBe('amesh-relay');
  const kubernetes = Bun.YAML.parse(await Bun.file(join(folder, '../kubernetes.yaml')).text()) as {
    kind: string;
    metadata: { namespace?: string; labels?: Record<string, string> };
  }[];
  const deployment = kubernetes.find(({ kind }) => kind === 'Deployment');
  expect(deployment?.metadata.namespace).toBe(metadata.namespace);
  expect(deployment?.metadata.labels).toMatchObject(spec.selector.matchLabels);
});

const promtool = Bun.which('promtool');
if (!promtool) console.warn('SKIPPED: there is no promtool here to try the alerts with');

describe.skipIf(!promtool)('promtool', () => {
  const run = async (args: string[], stdin = ''): Promise<string> => {
    const child = Bun.spawn([promtool as string, ...args], {
      cwd: folder,
      stdin: new Blob([stdin]),
      stdout: 'pipe',
      stderr: 'pipe',
    });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return `${out}${err}exit ${await child.exited}`;
  };

  test('the configuration and the rules are valid', async () => {
    expect(await run(['check', 'config', 'prometheus.yml'])).toEndWith('exit 0');
  });

  test('each alert fires on what it should, and none through a check, a deploy or a quiet night', async () => {
    expect(await run(['test', 'rules', 'alerts.test.yml'])).toEndWith('exit 0');
  }, 30_000);

  test('the dashboard’s queries are valid', async () => {
    const recorded = queries.map(({ expr }, index) => ({ record: `query_${index}`, expr }));
    const rules = Bun.YAML.stringify({ groups: [{ name: 'dashboard', rules: recorded }] }, null, 2);
    expect(await run(['check', 'rules', '/dev/stdin'], rules)).toEndWith('exit 0');
  });

  test('the metrics are as Prometheus wants them', async () => {
    const relay = await startRelay({ metricsPort: 0 });
    await relay.pair();
    const text = await (await fetch(`http://127.0.0.1:${relay.server.metricsPort}/metrics`)).text();
    expect(await run(['check', 'metrics'], text)).toBe('exit 0');
  });
});

test('docs/monitoring.md has every alert', async () => {
  const text = await Bun.file(join(import.meta.dir, '../docs/monitoring.md')).text();
  const named = [...text.matchAll(/^\| `(Amesh\w+)`/gm)].map(([, name]) => name);
  expect(named).toEqual(rules.map(({ alert }) => alert));
});
