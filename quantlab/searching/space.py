"""The search space: variables (sites that are decided together) and the precisions to choose from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.calibration.estimators import Calibration
from quantlab.methods.bits import Bits, Precision, Rule
from quantlab.methods.method import NO_SPLITS, Method, Splits, plan_site
from quantlab.methods.per_site import PerSite
from quantlab.network.sites import Site, matching
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.searching.alternatives import OWN
from quantlab.searching.search_config import Search, bits_of

# A candidate: one precision for each variable, in order, and then the alternative, where there are several.
Choices = tuple[Precision, ...]
SLOTS = "slots"  # the name of the choice among alternatives, beside the variables'


@dataclass(frozen=True, kw_only=True)
class Variable:
    """Sites that are decided together."""

    name: str
    sites: tuple[Site, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """The variables of a search and their choices, and its alternatives of transform, split and rounding."""

    variables: tuple[Variable, ...]
    choices: tuple[Precision, ...]  # from the narrowest to the widest
    fixed: tuple[Site, ...]  # the trial's other sites
    alternatives: tuple[str, ...] = (OWN,)  # names; the first is the reference's

    @property
    def sites(self) -> list[Site]:
        """The decided sites, in the network's order."""
        return [site for variable in self.variables for site in variable.sites]

    @property
    def decides_slots(self) -> bool:
        """Whether there is more than one alternative."""
        return len(self.alternatives) > 1

    @property
    def decided(self) -> dict[str, tuple[Precision, ...]]:
        """What may be chosen, by the name of what is decided, in a candidate's order."""
        slots: dict[str, tuple[Precision, ...]] = {SLOTS: self.alternatives} if self.decides_slots else {}
        return {v.name: self.choices for v in self.variables} | slots

    def with_slots(self, precisions: Choices, slots: str) -> Choices:
        """The candidate of these precisions, one for each variable, with an alternative."""
        return (*precisions, slots) if self.decides_slots else precisions

    def slots(self, chosen: Choices) -> str:
        """The name of a candidate's alternative."""
        return str(chosen[-1]) if self.decides_slots else self.alternatives[0]

    def precisions(self, chosen: Choices) -> Choices:
        """A candidate's precisions alone."""
        return chosen[: len(self.variables)]

    def all(self, choice: Precision) -> Choices:
        """The candidate with every variable at ``choice``, of the first alternative."""
        return self.with_slots((choice,) * len(self.variables), self.alternatives[0])

    @property
    def narrow(self) -> Choices:
        return self.all(self.choices[0])

    @property
    def wide(self) -> Choices:
        return self.all(self.choices[-1])

    def by_site(self, chosen: Choices) -> dict[str, Precision]:
        """The precision of each decided site."""
        pairs = zip(self.variables, self.precisions(chosen), strict=True)
        return {site.name: choice for variable, choice in pairs for site in variable.sites}

    def method(self, base: Method, chosen: Choices) -> PerSite:
        """A candidate as a method: a rule for the narrowest precision, then one for each wider site."""
        narrow = self.choices[0]
        rules = [Rule(match=site.name, bits=narrow) for site in self.sites]
        if not self.fixed:
            rules = [Rule(match="*", bits=narrow)]
        wider = [
            Rule(match=name, bits=choice) for name, choice in self.by_site(chosen).items() if choice != narrow
        ]
        return PerSite(base=base, rules=(*rules, *wider))

    def chosen(self, of_sites: Mapping[str, Precision]) -> Choices:
        """The first alternative's candidate for given precisions of sites: a variable takes the widest of its
        sites."""
        widest = (max((of_sites[site.name] for site in v.sites), key=bits_of) for v in self.variables)
        return self.with_slots(tuple(widest), self.alternatives[0])


def space_of(search: Search, sites: Sequence[Site], method: Method, bits: Bits) -> Space:
    """Groups the sites into a search's variables. Raises ValueError if there is nothing to decide, or if
    ``bits`` or ``method`` decides a site already."""
    names = [site.name for site in sites]
    if not names:
        raise ValueError("the placement has no site: there is nothing to decide")
    decided = matching(search.sites, names, "search.sites")
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.name in decided:
            groups.setdefault(_group(site.name, search.group_by), []).append(site)
    choices = tuple(sorted(search.choices, key=bits_of))
    space = Space(
        variables=tuple(Variable(name=name, sites=tuple(members)) for name, members in groups.items()),
        choices=choices,
        fixed=tuple(site for site in sites if site.name not in decided),
        alternatives=search.alternatives,
    )
    for site in space.sites:
        _check_undecided(site, space, method, bits)
    return space


def _check_undecided(site: Site, space: Space, method: Method, bits: Bits) -> None:
    for rule in bits.rules:
        if site.matches([rule.match]):
            raise ValueError(
                f"bits.rules has {site.name} in {rule.bits} bits and search.sites lets the search "
                f"decide it: take it out of one of them"
            )
    specs = [space.method(method, space.all(choice)).site_spec(site, bits) for choice in space.choices]
    if None in specs or len(set(specs)) < len(specs):
        raise ValueError(
            f"{type(method).__name__} decides {site.name} itself, whatever the search chooses: "
            f"take it out of search.sites, or take another method"
        )


def activation_table(
    space: Space,
    method: Method,
    bits: Bits,
    sketches: Mapping[str, Sketch],
    calibration: Calibration,
    splits: Splits = NO_SPLITS,
) -> dict[tuple[str, Precision], ActivationQuant]:
    """The quantizer of every decided site at every choice, by site and choice. They are independent of each
    other."""
    table = {}
    for choice in space.choices:
        decided = space.method(method, space.all(choice))
        for site in space.sites:
            spec = decided.site_spec(site, bits)
            assert spec is not None
            split = splits.get(site.name)
            table[site.name, choice] = plan_site(site, spec, sketches[site.name], calibration, split)
    return table


def _group(site: str, by: str) -> str:
    scope, role = site.split(".", 1)
    if by == "role":
        return f"*.{role}" if scope.isdigit() else site
    if by == "layer":
        return f"{scope}.*"
    if by == "layer_role":  # attention and feed-forward of each layer
        return f"{scope}.{role.split('.')[0]}.*"
    return site
