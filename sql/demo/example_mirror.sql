-- The example application's tables on the Supabase project: the same columns without the defaults, because every
-- row comes complete. Foreign keys wait until the end of a batch and never act on their own; row level
-- security is on, and only the relay's role may write.

create type "SceneStatus" as enum ('DRAFT', 'RENDERING', 'READY', 'FAILED');

create table "Story" (
  "id" uuid not null,
  "title" text not null,
  "authorEmail" text,
  "isPublic" boolean not null,
  "tags" text[],
  "settings" jsonb not null,
  "createdAt" timestamptz(3) not null,
  "updatedAt" timestamptz(3) not null,
  constraint "Story_pkey" primary key ("id")
);

create table "Scenario" (
  "id" text not null,
  "storyId" uuid not null,
  "position" integer not null,
  "summary" text not null,
  "status" "SceneStatus" not null,
  "createdAt" timestamptz(3) not null,
  "updatedAt" timestamptz(3) not null,
  constraint "Scenario_pkey" primary key ("id"),
  constraint "Scenario_storyId_fkey" foreign key ("storyId") references "Story" ("id")
    deferrable initially immediate,
  constraint "Scenario_storyId_position_key" unique ("storyId", "position")
    deferrable initially immediate
);

create table "Prompt" (
  "id" text not null,
  "scenarioId" text not null,
  "body" text not null,
  "parameters" jsonb,
  "tokenCount" bigint,
  "costUsd" numeric(12, 6),
  "createdAt" timestamptz(3) not null,
  constraint "Prompt_pkey" primary key ("id"),
  constraint "Prompt_scenarioId_fkey" foreign key ("scenarioId") references "Scenario" ("id")
    deferrable initially immediate
);

create table "VideoAsset" (
  "id" uuid not null,
  "scenarioId" text not null,
  "promptId" text,
  "url" text,
  "durationSeconds" double precision,
  "checksum" bytea,
  "renderedAt" timestamptz(3),
  constraint "VideoAsset_pkey" primary key ("id"),
  constraint "VideoAsset_scenarioId_fkey" foreign key ("scenarioId") references "Scenario" ("id")
    deferrable initially immediate,
  constraint "VideoAsset_promptId_fkey" foreign key ("promptId") references "Prompt" ("id")
    deferrable initially immediate
);

create index "Prompt_scenarioId_idx" on "Prompt" ("scenarioId");
create index "VideoAsset_scenarioId_idx" on "VideoAsset" ("scenarioId");
create index "VideoAsset_promptId_idx" on "VideoAsset" ("promptId");

alter table "Story" enable row level security;
alter table "Scenario" enable row level security;
alter table "Prompt" enable row level security;
alter table "VideoAsset" enable row level security;

-- Projects grant nothing by default, not even to service_role.
grant select, insert, update, delete on "Story", "Scenario", "Prompt", "VideoAsset" to service_role;

-- What a reader sees is a policy like any other: here, public stories for everybody.
grant select on "Story" to anon, authenticated;
create policy "public stories" on "Story" for select using ("isPublic");
