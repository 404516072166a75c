-- include: records, show
-- Show some of an account's snapshots. Those that no longer exist are left out.
-- Only reads.
-- ask: {account, ids, brief}; brief may be missing
-- Answers {snapshot (see `show_snapshot`; if brief, see `brief_snapshot`), ...}.
local ask = cjson.decode(ARGV[1])
local shown = {}
for _, id in ipairs(ask.ids) do
  if ask.brief then
    shown[#shown + 1] = brief_snapshot(id, ask.account)
  elseif is_listed(id, ask.account) then
    shown[#shown + 1] = attempt('snapshot:' .. id, show_snapshot, id)
  end
end
return shown
