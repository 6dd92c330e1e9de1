"""
Where is the level of a series, and where does it go?
=====================================================

The yearly flow of the Nile at Aswan, 1871 to 1970, as a level that drifts under noise. Bands hold
50 and 90 %; two stretches of years are taken out, and ten are forecast.
"""

import numpy as np
import pandas as pd

from skavi import FactorizedVI
from skavi.displays import LatentPosteriorDisplay
from skavi.models import LocalLevel

flow = """
1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100
1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456
824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822
1010 771 676 649 846 812 742 801 1040 860 874 848 890 744 749 838 1050 918 986 797 923 975 815 1020
906 901 1170 912 746 919 718 714 740
"""
X = pd.DataFrame({"flow": np.array(flow.split(), dtype=float)}, index=range(1871, 1971))
X.loc[1891:1900] = np.nan
X.loc[1931:1940] = np.nan

vi = FactorizedVI(LocalLevel(), random_state=0).fit(X)
LatentPosteriorDisplay(vi.posterior(X)).plot_series(X, forecast=vi.forecast(X, 10))
