/**
 * `bun bench/dashboard.ts [--minutes 10]`: draws docs/dashboard.svg, the Grafana dashboard of deploy/grafana with real
 * data. A relay runs for that long with people who pair, mistype and give up, and with somebody who guesses codes; a real
 * Prometheus (`prometheus` must be installed) scrapes it and answers the dashboard's queries.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { TopLevelSpec } from 'vega-lite';
import { draw } from './plots.ts';

const root = join(import.meta.dir, '..');
const { values: options } = parseArgs({
  options: { minutes: { type: 'string', default: '10' } },
});
const seconds = Number(options.minutes) * 60;
const SCRAPE_SECONDS = 5;
/** What Grafana puts in place of $__rate_interval is at least four scrapes; a minute draws calmer lines. */
const RATE_SECONDS = 60;

interface Panel {
  type: 'stat' | 'timeseries';
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets: { expr: string; legendFormat: string }[];
  options: { textMode?: string };
  fieldConfig: {
    defaults: {
      unit: string;
      decimals?: number;
      noValue?: string;
      max?: number;
      custom?: { stacking?: { mode: string } };
      thresholds?: { steps: { color: string; value: number | null }[] };
    };
    overrides: { matcher: { options: string }; properties: { value: { fixedColor: string } }[] }[];
  };
}
interface Sample {
  series: string;
  /** Milliseconds since 1970. */
  time: number;
  value: number;
}

// People ------------------------------------------------------------------------------------------------------------

/** One device at a WebSocket of its own, from an address of its own. */
class Device {
  readonly #ws: WebSocket;
  readonly #frames: string[] = [];
  #wake = (): void => {};

  constructor(url: string, address: string) {
    this.#ws = new WebSocket(url, { headers: { 'x-forwarded-for': address } } as never);
    this.#ws.onmessage = ({ data }) => {
      this.#frames.push(String(data));
      this.#wake();
    };
    this.#ws.onclose = () => this.#wake();
  }

  async opened(): Promise<this> {
    while (this.#ws.readyState === WebSocket.CONNECTING) await Bun.sleep(2);
    return this;
  }

  send(frame: object): void {
    this.#ws.send(JSON.stringify(frame));
  }

  /** The type of the next frame, or "closed". */
  async next(): Promise<string> {
    for (;;) {
      const frame = this.#frames.shift();
      if (frame) return (JSON.parse(frame) as { type: string }).type;
      if (this.#ws.readyState === WebSocket.CLOSED) return 'closed';
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  close(): void {
    this.#ws.close();
  }
}

const dice = (): number => Math.random();
const someone = (): string => `198.51.${Math.floor(dice() * 256)}.${Math.floor(dice() * 256)}`;
const someCode = (): string => String(Math.floor(dice() * 1e6)).padStart(6, '0');

/** Two devices: one waits, a person types the code on the other, they exchange keys and are done. Some never get there. */
async function pairing(url: string): Promise<void> {
  const code = someCode();
  const target = await new Device(url, someone()).opened();
  target.send({ type: 'listen', otc: code });
  if ((await target.next()) !== 'ack') return target.close();
  const fate = dice();
  if (fate < 0.08) return void (await target.next());
  await Bun.sleep(3000 + 9000 * dice() ** 2);
  const controller = await new Device(url, someone()).opened();
  if (fate < 0.2) {
    controller.send({ type: 'connect', otc: someCode() });
    await controller.next();
    await Bun.sleep(3000);
  }
  controller.send({ type: 'connect', otc: code });
  await Promise.all([target.next(), controller.next()]);
  for (let frame = 0; frame < 4; frame += 1) {
    const [from, to] = frame % 2 ? [target, controller] : [controller, target];
    from.send({ type: 'data', payload: 'x'.repeat(400 + Math.floor(dice() * 3000)) });
    await to.next();
    await Bun.sleep(200 + 1500 * dice());
    if (frame === 0 && fate > 0.95) return controller.close();
  }
  target.send({ type: 'done' });
  await controller.next();
  target.close();
  controller.close();
}

async function guesser(url: string, until: number): Promise<void> {
  const device = await new Device(url, '203.0.113.9').opened();
  while (Date.now() < until) {
    device.send({ type: 'connect', otc: someCode() });
    if ((await device.next()) === 'closed') return;
    await Bun.sleep(400);
  }
  device.close();
}

async function crowd(url: string): Promise<void> {
  const start = Date.now();
  const under: Promise<void>[] = [];
  let isGuessed = false;
  for (;;) {
    const share = (Date.now() - start) / (seconds * 1000);
    if (share >= 1) break;
    under.push(pairing(url).catch(console.error));
    if (!isGuessed && share > 0.55) {
      isGuessed = true;
      under.push(guesser(url, Date.now() + seconds * 180));
    }
    // Busier in the middle, as a day is.
    await Bun.sleep((1200 + 3000 * dice()) / (0.5 + Math.sin(share * Math.PI)));
  }
  console.log(`${under.length} pairings`);
}

// Prometheus --------------------------------------------------------------------------------------------------------

/** Ports that nobody listens on, at least now. */
function freePorts(count: number): number[] {
  const held = Array.from({ length: count }, () =>
    Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } }),
  );
  return held.map((listener) => {
    listener.stop();
    return listener.port;
  });
}

const fill = (expr: string): string =>
  expr
    .replaceAll('$job', 'amesh-relay')
    .replaceAll('$__rate_interval', `${RATE_SECONDS}s`)
    .replaceAll('$__range', `${seconds}s`);

async function query(base: string, panel: Panel, end: number): Promise<Sample[]> {
  const samples: Sample[] = [];
  for (const { expr, legendFormat } of panel.targets) {
    const isStat = panel.type === 'stat';
    const parameters = new URLSearchParams({ query: fill(expr) });
    if (isStat) parameters.set('time', String(end));
    else {
      parameters.set('start', String(end - seconds + RATE_SECONDS));
      parameters.set('end', String(end));
      parameters.set('step', String(Math.max(SCRAPE_SECONDS, Math.round(seconds / 90))));
    }
    const response = await fetch(
      `${base}/api/v1/query${isStat ? '' : '_range'}?${parameters.toString()}`,
    );
    const { status, error, data } = (await response.json()) as {
      status: string;
      error?: string;
      data: {
        result: {
          metric: Record<string, string>;
          value?: [number, string];
          values?: [number, string][];
        }[];
      };
    };
    if (status !== 'success') throw new Error(`${panel.title}: ${error}`);
    for (const { metric, value, values = value ? [value] : [] } of data.result) {
      const series = legendFormat.replaceAll(
        /\{\{(\w+)\}\}/g,
        (_, label: string) => metric[label] ?? '',
      );
      for (const [time, number] of values) {
        if (Number.isFinite(Number(number)))
          samples.push({ series, time: time * 1000, value: Number(number) });
      }
    }
  }
  return samples;
}

// The picture -------------------------------------------------------------------------------------------------------

/** Pixels of one of Grafana's 24 columns, and of one of its rows. */
const COLUMN = 34;
const ROW = 24;
/** Pixels between two panels: room for the labels of an axis. */
const GAP = 64;

const SHADES: Record<string, string> = {
  green: '#3fb950',
  yellow: '#d29922',
  orange: '#db6d28',
  red: '#f85149',
};
const OTHERS = ['#2f81f7', '#db61a2', '#39c5cf', '#a371f7', '#d29922', '#8b949e', '#3fb950'];

const FORMATS: Record<string, (value: number) => string> = {
  percentunit: (value) => `${Math.round(value * 100)} %`,
  s: (value) => `${value.toFixed(1)} s`,
  bytes: (value) => `${Math.round(value / 2 ** 20)} MiB`,
  none: (value) => (Number.isInteger(value) ? String(value) : value.toFixed(1)),
};
const AXES: Record<string, string> = {
  percentunit: "format(datum.value, '.1%')",
  s: "datum.value < 1 ? format(datum.value * 1000, '.2~f') + ' ms' : format(datum.value, '.0f') + ' s'",
  bytes: "format(datum.value / 1048576, '.0f') + ' MiB'",
  Bps: "format(datum.value / 1000, '.1f') + ' kB/s'",
  none: "format(datum.value, '~g')",
};

function drawStat(
  { title, gridPos, options: { textMode }, fieldConfig }: Panel,
  samples: Sample[],
) {
  const { unit, noValue = '-', thresholds } = fieldConfig.defaults;
  const [sample] = samples;
  const text =
    textMode === 'name'
      ? sample?.series
      : sample && (FORMATS[unit] as (v: number) => string)(sample.value);
  const step = thresholds?.steps.findLast(
    ({ value }) => value === null || (sample?.value ?? 0) >= value,
  );
  return {
    title: { text: title, fontSize: 11, fontWeight: 'normal', frame: 'group' },
    width: gridPos.w * COLUMN - GAP,
    height: 40,
    data: { values: [{}] },
    mark: {
      type: 'text',
      text: text ?? noValue,
      fontSize: 22,
      align: 'left',
      x: 0,
      color: (textMode !== 'name' && SHADES[step?.color ?? '']) || 'currentColor',
    },
  };
}

function drawSeries({ title, gridPos, fieldConfig }: Panel, samples: Sample[]) {
  const { unit, max, custom } = fieldConfig.defaults;
  const isStacked = custom?.stacking?.mode === 'normal';
  const domain = [...new Set(samples.map(({ series }) => series))];
  const fixed = new Map(
    fieldConfig.overrides.map(({ matcher, properties: [property] }) => [
      matcher.options,
      SHADES[property?.value.fixedColor ?? ''],
    ]),
  );
  const range = domain.map((name, index) => fixed.get(name) ?? OTHERS[index % OTHERS.length]);
  const isOne = domain.length === 1;
  return {
    title: { text: title, fontSize: 11, fontWeight: 'normal', frame: 'group' },
    width: gridPos.w * COLUMN - GAP,
    height: gridPos.h * ROW - 70,
    data: { values: samples },
    mark: isStacked ? { type: 'area', opacity: 0.8 } : { type: 'line', strokeWidth: 1.5 },
    encoding: {
      x: {
        field: 'time',
        type: 'temporal',
        title: null,
        axis: { format: '%H:%M', tickCount: 5, grid: false },
      },
      y: {
        field: 'value',
        type: 'quantitative',
        title: null,
        stack: isStacked ? 'zero' : null,
        scale: { domainMin: 0, ...(max && { domainMax: max }) },
        axis: { tickCount: 4, labelExpr: AXES[unit] },
      },
      color: {
        field: 'series',
        type: 'nominal',
        scale: { domain, range },
        legend: isOne
          ? null
          : {
              orient: 'bottom',
              title: null,
              columns: 4,
              columnPadding: 8,
              gridAlign: 'none',
              labelFontSize: 9,
              labelColor: 'currentColor',
              labelLimit: 150,
            },
      },
    },
  };
}

/** Each panel has colours of its own. */
const apart = { scale: { color: 'independent' } };

async function picture(panels: Panel[], base: string, end: number): Promise<string> {
  const rows = Map.groupBy(panels, ({ gridPos }) => gridPos.y);
  const vconcat = [];
  for (const row of rows.values()) {
    const hconcat = [];
    for (const panel of row) {
      const samples = await query(base, panel, end);
      console.log(`${panel.title}: ${samples.length} samples`);
      hconcat.push(panel.type === 'stat' ? drawStat(panel, samples) : drawSeries(panel, samples));
    }
    vconcat.push({ hconcat, resolve: apart, spacing: GAP, bounds: 'flush' });
  }
  const padding = 10;
  const spec = { vconcat, resolve: apart, spacing: 18, padding };
  return draw(spec as unknown as TopLevelSpec);
}

// -------------------------------------------------------------------------------------------------------------------

const folder = await mkdtemp(join(tmpdir(), 'amesh-relay-dashboard-'));
const [relayPort, metricsPort, prometheusPort] = freePorts(3) as [number, number, number];
const base = `http://127.0.0.1:${prometheusPort}`;
await Bun.write(
  join(folder, 'prometheus.yml'),
  `global: { scrape_interval: ${SCRAPE_SECONDS}s }
scrape_configs: [{ job_name: amesh-relay, static_configs: [{ targets: ['127.0.0.1:${metricsPort}'] }] }]\n`,
);
const relay = Bun.spawn([process.execPath, join(root, 'bin/amesh-relay.js')], {
  env: {
    PATH: process.env['PATH'],
    PORT: String(relayPort),
    METRICS_PORT: String(metricsPort),
    HOST: '127.0.0.1',
    AMESH_TRUST_PROXY: '1',
  },
  stdout: 'ignore',
});
const prometheus = Bun.spawn(
  [
    'prometheus',
    `--config.file=${folder}/prometheus.yml`,
    `--storage.tsdb.path=${folder}/data`,
    `--web.listen-address=127.0.0.1:${prometheusPort}`,
  ],
  { stdout: 'ignore', stderr: 'ignore' },
);
try {
  while (!(await fetch(`${base}/-/ready`).catch(() => undefined))?.ok) await Bun.sleep(100);
  await crowd(`ws://127.0.0.1:${relayPort}/ws`);
  const { panels } = (await Bun.file(join(root, 'deploy/grafana/amesh-relay.json')).json()) as {
    panels: Panel[];
  };
  const file = join(root, 'docs/dashboard.svg');
  await Bun.write(file, `${await picture(panels, base, Date.now() / 1000)}\n`);
  console.log(file);
} finally {
  relay.kill('SIGKILL');
  prometheus.kill();
  await prometheus.exited;
  await rm(folder, { recursive: true });
}
process.exit(0);
